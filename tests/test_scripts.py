"""Measurements that no other test runs, at toy size: they end, and their last line has its figures."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtpd_extract.cli import main as mtpd_extract

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / 'configs' / 'demo' / 'teachers'
pytestmark = pytest.mark.slow


def last_line(script: str, *options: object) -> str:
    command = [sys.executable, str(ROOT / 'scripts' / script), *map(str, options)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


@pytest.fixture(scope='module')
def teacher(synthetic_set: Path) -> list[object]:
    """A trained teacher and a small data set, as options."""
    return ['--teacher', DEMO / 'weak.py', '--checkpoint', DEMO / 'weak.pth', '--coco', synthetic_set]


@pytest.fixture(scope='module')
def caches(tmp_path_factory: pytest.TempPathFactory, synthetic_set: Path, teacher: list[object]) -> list[Path]:
    """The caches of two teachers."""
    folder = tmp_path_factory.mktemp('caches')
    found = []
    for name in ('weak', 'strong'):
        options = ['--teacher', DEMO / f'{name}.py', '--checkpoint', DEMO / f'{name}.pth', *teacher[-2:]]
        options += ['--out', folder / name, '--codec', 'int8', '--limit', 8]
        mtpd_extract.main([str(one) for one in options], standalone_mode=False)
        found.append(folder / name)
    return found


def test_bench_extract(teacher: list[object]) -> None:
    line = last_line('bench_extract.py', *teacher, '--limit', 4, '--repeats', 1)
    assert re.fullmatch(r'extract/forward \d\.\d{3} predicted/real bytes \d\.\d{3} time \d+\.\d{3}', line)


def test_bench_codecs(teacher: list[object]) -> None:
    line = last_line('bench_codecs.py', *teacher, '--num-images', 2)
    assert re.fullmatch(r'bits \d+\.\d\d head-AP-drop -?\d+\.\d\d', line)


def test_bench_images(synthetic_set: Path) -> None:
    line = last_line('bench_images.py', synthetic_set / 'train2017', '--limit', 4, '--repeats', 1)
    assert re.fullmatch(r'read_image/OpenCV \d+\.\d\d', line)


def test_bench_help() -> None:
    assert re.fullmatch(r'slowest \d+\.\d\d', last_line('bench_help.py', '--runs', 1))


def test_bench_scale(tmp_path: Path) -> None:
    parts = ['batches', 'records', 'write', 'reads', 'parts']
    line = last_line('bench_scale.py', '--work', tmp_path / 'work', '--images', 150, '--parts', *parts)
    assert re.fullmatch(r'within \d of 3', line)
    assert not (tmp_path / 'work').exists()


def test_check_batches() -> None:
    line = last_line('check_batches.py', '--seeds', 1, '--epochs', 1, '--images', 24)
    assert re.fullmatch(r'shape-minus-mixed -?\d\.\d\d standard-error nan', line)


def test_coco_sizes(caches: list[Path], synthetic_set: Path) -> None:
    annotations = synthetic_set / 'annotations' / 'instances_train2017.json'
    assert re.fullmatch(r'bits \d+\.\d\d', last_line('coco_sizes.py', caches[0], '--annotations', annotations))


def test_check_adaptation_costs(caches: list[Path]) -> None:
    line = last_line('check_adaptation_costs.py', *caches, '--num-images', 4, '--steps', 5)
    assert re.fullmatch(r'same ranking: (yes|no)', line)
