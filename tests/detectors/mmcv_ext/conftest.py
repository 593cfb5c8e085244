import pytest

from mtpd.detectors.of_mmdet.runtime import prepare


@pytest.fixture(scope='session', autouse=True)
def _operators() -> None:
    prepare()
