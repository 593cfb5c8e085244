"""Stress of extractions and caches, as long as asked for.

MTPD_STRESS_ROUNDS=50 MTPD_STRESS_SEED=1 python -m pytest tests/stress -rP

MTPD_STRESS_ROUNDS is the number of trials of each kind of harm (default 1), MTPD_STRESS_SEED the random seed of its
moments and places (default 0); `-rP` shows how many trials of each kind left all reads right and how many had some
refused. Nothing may be wrong: a wrong value, another error, a crash, a hang, memory without limit, or a resumed
extraction or a merge that does not give the undisturbed cache.
"""

import os

import pytest

from stress.extraction import Setting, make_setting


@pytest.fixture(scope='session')
def rounds() -> int:
    """Trials of each kind of harm."""
    return int(os.environ.get('MTPD_STRESS_ROUNDS', '1'))


@pytest.fixture(scope='session', params=['maps', 'rois'])
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """An extraction of maps, and one with proposals and a RoI head."""
    seed = int(os.environ.get('MTPD_STRESS_SEED', '0'))
    return make_setting(tmp_path_factory.mktemp('stress'), seed=seed, has_rois=request.param == 'rois')
