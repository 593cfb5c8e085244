"""`scripts/env_report.py`: whole, true, and fit to be shown to strangers."""

import getpass
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'scripts' / 'env_report.py'


def run(folder: Path, *, code: str = 'pass', **variables: str) -> list[str]:
    start = f'import runpy; {code}; runpy.run_path({str(SCRIPT)!r}, run_name="__main__")'
    result = subprocess.run(
        [sys.executable, '-c', start],
        cwd=folder,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ''
    return result.stdout.splitlines()


@pytest.fixture(scope='module')
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp('home')
    secrets = {'HOME': str(folder), 'WANDB_API_KEY': 'very-secret', 'OMP_NUM_THREADS': '1'}
    return run(folder, **secrets)


def test_every_question_is_answered(lines: list[str]) -> None:
    assert lines[-1] == 'unanswered 0'
    names = [line.split()[0] for line in lines[:-1]]
    assert names == [
        'system', 'commit', 'packages', 'cpu', 'disk', 'gpu', 'kernels', 'operators', 'codecs', 'threads'
    ]  # fmt: skip


def test_what_it_says_is_true(lines: list[str]) -> None:
    text = '\n'.join(lines)
    assert f'torch {version("torch")}' in text
    assert platform.python_version() in text
    assert 'numcodecs with zstd' in text
    assert 'OMP_NUM_THREADS=1' in text
    assert 'torchvision, in place of compiled mmcv' in text


def test_nothing_private(lines: list[str]) -> None:
    text = '\n'.join(lines)
    private = ['very-secret', str(ROOT), str(Path.home()), sys.prefix]
    private += [platform.node()] * (len(platform.node()) > 5)
    private += [f'/home/{getpass.getuser()}', f'/Users/{getpass.getuser()}']
    assert [one for one in private if one and one in text] == []


def test_a_broken_installation_is_reported_not_raised(tmp_path: Path) -> None:
    lines = run(tmp_path, code='import sys; sys.modules["numcodecs"] = None')
    (codecs,) = [line for line in lines if line.startswith('codecs')]
    assert 'unanswered: ' in codecs
    assert 'numcodecs' in codecs
    assert lines[-1] == 'unanswered 1'


def test_paths_of_errors_lose_their_home(tmp_path: Path) -> None:
    code = f'import os; os.sysconf = lambda name: open({str(tmp_path / "secret" / "file")!r})'
    lines = run(tmp_path, code=code, HOME=str(tmp_path))
    (cpu,) = [line for line in lines if line.startswith('cpu')]
    assert "No such file or directory: '~/secret/file'" in cpu
