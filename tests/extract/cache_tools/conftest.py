"""Runs of `mtpd-cache`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mtpd_extract.cache_tools.cli import main


@pytest.fixture(scope='session')
def mtpd_cache() -> Callable[..., Result]:
    """`mtpd_cache('info', folder, code=0)`: runs it in this process; `code` is the exit code that it must have."""

    def run(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        assert 'this is a bug' not in result.stderr
        return result

    return run


@pytest.fixture(scope='session')
def sharded(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: Any) -> Path:
    """A cache of eight shards. Not to be changed."""
    out = tmp_path_factory.mktemp('sharded') / 'cache'
    command.run(out, *many_shards)
    return out


@pytest.fixture
def cache(sharded: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(sharded, tmp_path / 'cache', ignore=shutil.ignore_patterns('.lock*'))
    return tmp_path / 'cache'
