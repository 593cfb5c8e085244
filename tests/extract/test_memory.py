"""The memory of an extraction does not grow with the data set."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

# Large maps from little work, of values that hardly compress: 393 kB of int8 codes a view.
WIDE_TEACHER = """
import torch
from torch import nn

class Wide(nn.Module):
    scale, mean, std = (256, 256), (120.0, 120.0, 120.0), (60.0, 60.0, 60.0)

    def __init__(self):
        super().__init__()
        self.noise = nn.Parameter(torch.randn(384, 32, 40, generator=torch.Generator().manual_seed(0)))

    def features(self, images):
        return [self.noise[:, : images.shape[2] // 8, : images.shape[3] // 8] + images.mean((1, 2, 3), keepdim=True)]
"""


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


def megabytes(field: str) -> float:
    """A field of this process's status: VmRSS is what it has, VmHWM the most it had."""
    (found,) = re.findall(rf'^{field}:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.MULTILINE)
    return int(found) / 1024


def test_memory_stays_within_a_few_shards(make_command: Any, synthetic_set: Path, tmp_path: Path) -> None:
    """Of 8 MB; the larger set has 110 MB of codes. The smaller one warms up what stays: libraries, buffers."""
    reset = Path('/proc/self/clear_refs')
    if not reset.exists():
        pytest.skip('no /proc/self/clear_refs to reset the peak of the memory')
    (tmp_path / 'wide.py').write_text(f'{WIDE_TEACHER}\nbuild = lambda checkpoint: Wide()')
    for num_images in (20, 140):
        coco = repeated(synthetic_set, tmp_path / f'coco{num_images}', num_images)
        command = make_command(f'{tmp_path / "wide.py"}:build', coco, ['--shard-mb', 3.75])
        before = megabytes('VmRSS')
        reset.write_text('5')
        command.run(tmp_path / f'cache{num_images}')
        grown = megabytes('VmHWM') - before
    size = sum(path.stat().st_size for path in (tmp_path / 'cache140').rglob('*') if path.is_file())
    assert size > 60e6
    assert grown < 40
