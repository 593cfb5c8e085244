"""The world that torchrun describes."""

import pytest

from mtpd.errors import InputError
from mtpd_train.processes import ALONE, World, world_of


def test_alone_without_torchrun_and_with_one_process() -> None:
    assert world_of({}) == ALONE
    assert world_of({'RANK': '0', 'WORLD_SIZE': '1', 'LOCAL_RANK': '0', 'MASTER_ADDR': 'x'}) == ALONE


def test_several() -> None:
    environment = {'RANK': '5', 'WORLD_SIZE': '8', 'LOCAL_RANK': '1', 'LOCAL_WORLD_SIZE': '4', 'MASTER_ADDR': 'x'}
    assert world_of(environment) == World(rank=5, size=8, local_rank=1, local_size=4)
    assert not world_of(environment).is_main


@pytest.mark.parametrize(
    ('environment', 'text'),
    [
        ({'RANK': '2', 'WORLD_SIZE': '2'}, 'RANK=2 and WORLD_SIZE=2 in the environment: expected a rank below'),
        ({'LOCAL_RANK': '-1'}, 'LOCAL_RANK=-1 in the environment: expected a number'),
        ({'LOCAL_WORLD_SIZE': 'all'}, 'LOCAL_WORLD_SIZE=all in the environment: expected a number'),
        ({'RANK': '0', 'WORLD_SIZE': '2'}, 'no MASTER_ADDR: start with torchrun, or unset WORLD_SIZE'),
    ],
)
def test_what_does_not_fit(environment: dict[str, str], text: str) -> None:
    with pytest.raises(InputError, match=text):
        world_of(environment)


def test_alone_it_asks_nobody() -> None:
    """No process group is there."""
    assert ALONE.any(True, False) == (True, False)
    assert ALONE.from_main(3) == 3
    assert ALONE.gathered(3) == ALONE.gathered_by_main(3) == [3]
    ALONE.share_buffers()
