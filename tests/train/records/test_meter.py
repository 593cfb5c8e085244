"""What a meter says of time."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from mtpd_train.records.meter import Meter


@dataclass
class Clock:
    """Goes on only when it is told to; seconds."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(clock: Clock) -> Meter:
    return Meter(stage=1, device=torch.device('cpu'), clock=clock)


def read(meter: Meter, clock: Clock, *, num_batches: int) -> None:
    """An epoch of batches of 2 images, each with 3 s of waiting and 1 s of computing."""

    def batches() -> Iterator[int]:
        for number in range(num_batches):
            clock.spend(3)
            yield number

    for number in meter.timed(batches()):
        clock.spend(1)
        meter.add({'loss': torch.tensor(1.0)}, step=number + 1, image_ids=[1, 2])


def test_seconds_are_those_of_the_images(clock: Clock) -> None:
    meter = started(clock)
    read(meter, clock, num_batches=2)
    record = meter.record(step=2, epoch=1, lr=0.1, decay={})
    assert (record.seconds, record.images_per_second, record.data_wait) == (8, 0.5, 0.75)


def test_each_record_has_its_own_seconds(clock: Clock) -> None:
    """Also when a record is made in the middle of an epoch."""

    def batches() -> Iterator[int]:
        for number in (1, 2):
            clock.spend(3)
            yield number

    meter = started(clock)
    for number in meter.timed(batches()):
        clock.spend(number)
        meter.add({'loss': torch.tensor(1.0)}, step=number, image_ids=[1, 2])
        record = meter.record(step=number, epoch=1, lr=0.1, decay={})
        assert (record.seconds, record.data_wait) == (3 + number, 3 / (3 + number))


@pytest.mark.parametrize('resumed', [False, True])
def test_an_evaluation_between_two_epochs_is_no_training(resumed: bool, clock: Clock) -> None:
    meter = started(clock)
    read(meter, clock, num_batches=1)
    clock.spend(100)
    meter.look()
    if resumed:
        state = meter.state_dict()
        meter = started(clock)
        meter.load_state_dict(state)
    read(meter, clock, num_batches=1)
    record = meter.record(step=2, epoch=2, lr=0.1, decay={})
    assert (record.seconds, record.images_per_second, record.data_wait) == (8, 0.5, 0.75)


def test_what_a_saved_state_has_done_counts(clock: Clock) -> None:
    """In the middle of an epoch too; what passes until it is taken up again does not."""
    meter = started(clock)
    for number in meter.timed(range(2)):
        clock.spend(4)
        meter.add({'loss': torch.tensor(1.0)}, step=number + 1, image_ids=[1, 2])
        meter.look()
        state = meter.state_dict()
    clock.spend(100)
    resumed = started(clock)
    resumed.load_state_dict(state)
    record = resumed.record(step=2, epoch=1, lr=0.1, decay={})
    assert (record.seconds, record.images_per_second) == (8, 0.5)
