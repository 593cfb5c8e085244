"""What a meter says of time."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from mtpd_train.records.meter import Meter

PAUSE = 0.2


def read(*, meter: Meter, num_batches: int, waiting: float = 0.0, then: Callable[[], None] = lambda: None) -> None:
    """An epoch of batches of 2 images."""

    def batches() -> Iterator[int]:
        for number in range(num_batches):
            time.sleep(waiting)
            yield number

    for number in meter.timed(batches()):
        meter.add({'loss': torch.tensor(1.0)}, step=number + 1, image_ids=[1, 2])
    then()


@pytest.fixture
def meter() -> Meter:
    return Meter(stage=1, device=torch.device('cpu'))


def test_seconds_are_those_of_the_images(meter: Meter) -> None:
    read(meter=meter, num_batches=2, waiting=PAUSE)
    record = meter.record(step=2, epoch=1, lr=0.1, decay={})
    assert record.seconds is not None
    assert 2 * PAUSE <= record.seconds < 3 * PAUSE
    assert record.images_per_second == pytest.approx(4 / record.seconds)
    assert record.data_wait == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize('resumed', [False, True])
def test_an_evaluation_between_two_epochs_is_no_training(resumed: bool, meter: Meter) -> None:
    read(meter=meter, num_batches=1, then=lambda: time.sleep(PAUSE))
    meter.look()
    if resumed:
        state = meter.state_dict()
        meter = Meter(stage=1, device=torch.device('cpu'))
        meter.load_state_dict(state)
    read(meter=meter, num_batches=1)
    record = meter.record(step=2, epoch=2, lr=0.1, decay={})
    assert record.seconds is not None
    assert record.seconds < PAUSE / 2


def test_what_a_saved_state_has_done_counts(meter: Meter) -> None:
    read(meter=meter, num_batches=1, waiting=PAUSE)
    meter.look()
    resumed = Meter(stage=1, device=torch.device('cpu'))
    resumed.load_state_dict(meter.state_dict())
    record = resumed.record(step=1, epoch=1, lr=0.1, decay={})
    assert record.seconds is not None
    assert record.seconds == pytest.approx(PAUSE, abs=PAUSE / 2)
    assert record.images_per_second == pytest.approx(2 / record.seconds)
