"""The program itself: its help, its exit codes."""

import subprocess
import sys
from collections.abc import Callable

import pytest
from click.testing import Result

from mtpd_extract.cache_tools.cli import main


@pytest.mark.parametrize('name', ['', *main.commands])
def test_help(mtpd_cache: Callable[..., Result], name: str) -> None:
    result = mtpd_cache(*name.split(), '--help')
    _, examples = result.stdout.split('\n  Examples:\n')
    assert all(line.startswith('    ') for line in examples.splitlines())
    assert f'mtpd-cache {name}' in examples


@pytest.mark.parametrize('name', ['', *main.commands])
def test_help_imports_nothing_heavy(name: str) -> None:
    code = (
        'import sys\nfrom mtpd_extract.cache_tools.cli import main\n'
        'try:\n    main(sys.argv[1:])\n'
        'except SystemExit:\n    assert not {"torch", "numpy", "mmdet", "zarr", "cv2"} & sys.modules.keys()'
    )
    subprocess.run([sys.executable, '-c', code, *name.split(), '--help'], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize('name', list(main.commands))
def test_usage_errors(mtpd_cache: Callable[..., Result], name: str) -> None:
    result = mtpd_cache(name, '--no-such-option', code=2)
    assert '--no-such-option' in result.stderr
    assert "Missing argument 'CACHE" in mtpd_cache(name, code=2).stderr


def test_verbose_adds_a_traceback(mtpd_cache: Callable[..., Result]) -> None:
    assert 'Traceback' not in mtpd_cache('info', 'no/such/folder', code=1).stderr
    assert 'Traceback' in mtpd_cache('info', '-v', 'no/such/folder', code=1).stderr
