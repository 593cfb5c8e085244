"""`scripts/env_report.py`: whole, true, and fit to be shown to strangers."""

import getpass
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / 'scripts' / 'env_report.py'


def load() -> Any:
    spec = spec_from_file_location('env_report', SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('HOME', str(tmp_path_factory.mktemp('home')))
        patch.setenv('WANDB_API_KEY', 'very-secret')
        patch.setenv('OMP_NUM_THREADS', '1')
        found, num_unanswered = load().report()
    return [*found, f'unanswered {num_unanswered}']


@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stderr == ''
    assert result.stdout.splitlines()[-1] == 'unanswered 0'


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


@pytest.fixture
def script() -> Any:
    return load()


def test_a_broken_installation_is_reported_not_raised(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'numcodecs', None)
    script.QUESTIONS = (script.codecs, script.packages)
    (codecs, packages), num_unanswered = script.report()
    assert codecs.startswith('codecs    unanswered: ModuleNotFoundError: ')
    assert 'numcodecs' in codecs
    assert 'unanswered' not in packages
    assert num_unanswered == 1


def test_paths_of_errors_lose_their_home(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(os, 'sysconf', lambda name: (tmp_path / 'secret' / name).read_text())
    script.QUESTIONS = (script.cpu,)
    ((cpu,), _) = script.report()
    assert "No such file or directory: '~/secret/SC_PAGE_SIZE'" in cpu
