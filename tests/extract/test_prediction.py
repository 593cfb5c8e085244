"""A dry run says what comes of the run: the bytes are asserted, the time is what scripts/bench_extract.py measures."""

import re
from pathlib import Path
from typing import Any

import pytest

from mtpd.geometry import Geometry
from mtpd_extract.estimate import COCO_SIZES


def predicted(stdout: str, name: str = 'predict') -> tuple[float, str]:
    """Bytes and the rest of a line of predictions."""
    (line,) = re.findall(rf'^{name} .*?([0-9.]+) (kB|MB|GB), (.*)$', stdout, re.MULTILINE)
    return float(line[0]) * {'kB': 1e3, 'MB': 1e6, 'GB': 1e9}[line[1]], line[2]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize(
    'options',
    [
        (),
        ('--codec', 'fp16', '--shard-mb', '0.01'),
        ('--codec', 'lean', '--batch-size', 1),
        ('--views', 'flip', '--levels', 'p4', '--batch-size', 64),
        ('--limit', 1, '--workers', 0),
    ],
    ids=lambda options: ' '.join(map(str, options)) or 'defaults',
)
def test_bytes(command: Any, tmp_path: Path, options: tuple[object, ...]) -> None:
    result = command.run(tmp_path / 'cache', '--dry-run', *options)
    assert not (tmp_path / 'cache').exists()
    num_bytes, rest = predicted(result.stdout)
    assert re.fullmatch(r'[0-9.]+ (s|min|h) at [0-9.e+]+ images/s; estimated from [0-9]+ images', rest)
    command.run(tmp_path / 'cache', *options)
    assert num_bytes == pytest.approx(size(tmp_path / 'cache'), rel=0.1, abs=5e4)


def test_bytes_of_large_maps(make_command: Any, noise_teacher: str, synthetic_set: Path, tmp_path: Path) -> None:
    """What compresses is all but all of the cache."""
    command = make_command(noise_teacher, synthetic_set, ['--limit', 10, '--batch-size', 2])
    num_bytes, _ = predicted(command.run(tmp_path / 'cache', '--dry-run').stdout)
    command.run(tmp_path / 'cache')
    assert num_bytes == pytest.approx(size(tmp_path / 'cache'), rel=0.03)


def test_coco_at_the_same_geometry(make_command: Any, noise_teacher: str, synthetic_set: Path, tmp_path: Path) -> None:
    """The noise teacher's codes hardly compress: 384 values for each 8 x 8 px, a byte each, two views."""
    result = make_command(noise_teacher, synthetic_set).run(tmp_path / 'cache', '--dry-run')
    num_bytes, _ = predicted(result.stdout, 'COCO')
    geometry = Geometry((256, 256))
    heights_widths = [geometry.padded(one) for one, count in COCO_SIZES.items() for _ in range(count)]
    pixels = sum(height * width for height, width in heights_widths) / len(heights_widths)
    assert num_bytes == pytest.approx(118287 * 2 * 384 * pixels / 64, rel=0.1)
    assert 'all 118287 images of train2017' in result.stdout


def test_a_dry_run_of_a_part_speaks_of_the_whole(command: Any, tmp_path: Path) -> None:
    whole = command.run(tmp_path / 'cache', '--dry-run').stdout
    part = command.run(tmp_path / 'cache', '--dry-run', '--part', '2/4').stdout
    assert predicted(part)[0] == predicted(whole)[0]
    assert ' in one process; estimated from' in part
