"""The memory of an extraction does not grow with the data set."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest


def repeated(synthetic_set: Path, folder: Path, num_images: int) -> Path:
    """The synthetic set's first image, this many times."""
    annotations = json.loads((synthetic_set / 'annotations' / 'instances_train2017.json').read_bytes())
    first = annotations['images'][0]
    images = [{**first, 'id': number} for number in range(num_images)]
    (folder / 'annotations').mkdir(parents=True)
    (folder / 'train2017').mkdir()
    shutil.copy(synthetic_set / 'train2017' / first['file_name'], folder / 'train2017')
    content = {**annotations, 'images': images, 'annotations': []}
    (folder / 'annotations' / 'instances_train2017.json').write_text(json.dumps(content))
    return folder


def peak_megabytes() -> float:
    """The most memory that this process has had since the peak was reset."""
    (found,) = re.findall(r'^VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.MULTILINE)
    return int(found) / 1024


def test_memory_stays_within_a_few_shards(
    make_command: Any, noise_teacher: str, synthetic_set: Path, tmp_path: Path
) -> None:
    """Of 6 MB: 200 images have 118 MB of codes. The first run warms up what stays: libraries, buffers."""
    reset = Path('/proc/self/clear_refs')
    if not reset.exists():
        pytest.skip('no /proc/self/clear_refs to reset the peak of the memory')
    peaks = []
    for run, num_images in enumerate((20, 20, 200)):
        coco = repeated(synthetic_set, tmp_path / f'coco{run}', num_images)
        reset.write_text('5')
        make_command(noise_teacher, coco, ['--shard-mb', 3.75]).run(tmp_path / f'cache{run}')
        peaks.append(peak_megabytes())
    size = sum(path.stat().st_size for path in (tmp_path / 'cache2').rglob('*') if path.is_file())
    assert size > 95e6
    assert peaks[2] - peaks[1] < 60
