import pytest

from mtpd.detectors.runtime import prepare


@pytest.fixture(scope='session', autouse=True)
def _operators() -> None:
    prepare()
