"""Runs of `mtpd-cache`."""

from collections.abc import Callable

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
