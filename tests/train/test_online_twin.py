"""A cached stage and its twin with the teacher in the loop: the same losses, step by step.

Students, batches, views and MGD's random masks are bit for bit the same, so only the stored maps' error tells the two
apart. The tolerances are relative, for every loss of every step of two epochs:

* fp16: 2^-11, the rounding error of one value in half precision. A loss is a mean over thousands of values, whose
  errors mostly cancel, and the two students drift apart only by the gradients of what is left: measured 7e-5.
* int8: 1e-2; a step of 1/254 of a channel's range is an error of 2e-5 to 4e-5 in squares. Measured 1e-3.
* lean: 1e-1; it stores maps with an error of 3e-2 in squares, which joins a squared difference. Measured 6e-2.

The learning rate is low, as training is chaotic: at ten times this rate, a difference of 5e-6 in the first step can be
one of 1e-3 in the sixth, whatever causes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.detectors.samples import Sample
from mtpd.detectors.teachers import Teacher
from mtpd.geometry import Size
from mtpd.system.interrupt import StopFlag
from mtpd_train.stage import Stage
from mtpd_train.teachers.live_teacher import LiveTeacher
from mtpd_train.training.loop import train_stage
from mtpd_train.training.step import add_gradient

CPU = torch.device('cpu')
TOLERANCES = {'fp16': 2**-11, 'int8': 1e-2, 'lean': 1e-1}
GEOMETRIES = {16: {'scale': '150x112'}, 24: {'scale': '150x112', 'pad_size': [112, 150]}}
SETTINGS = {
    'distill': [
        {'loss': 'mgd', 'weight': 1.0, 'normalize': 'mean', 'scale': 'teacher_std'},
        {'loss': 'masked_mse', 'decay': {'kind': 'linear'}},
    ],
    'optim': {'type': 'sgd', 'lr': 2e-4, 'epochs': 2},
}
DATA: dict[str, Any] = {'batch_size': 4, 'val': None}
PHOTOMETRIC = {'brightness': 0.3, 'probability': 1.0}
Losses = list[dict[str, float]]
Build = Callable[..., Stage]


@pytest.fixture
def losses_of(tmp_path: Path) -> Callable[[Stage], Losses]:
    """`losses_of(stage)` trains it; the losses of every step."""

    def run(stage: Stage) -> Losses:
        steps: Losses = []
        drawn: set[tuple[str, Size]] = set()

        def watched(stage: Stage, samples: Sequence[Sample], *rest: Any, **options: Any) -> dict[str, torch.Tensor]:
            losses = add_gradient(stage, samples, *rest, **options)
            steps.append({name: value.item() for name, value in losses.items()})
            drawn.update((one.view, one.resized) for one in samples)
            return losses

        files: dict[str, Any] = {'progress_file': tmp_path / 'progress.pth', 'metrics_file': tmp_path / 'metrics.jsonl'}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('mtpd_train.training.loop.add_gradient', watched)
            train_stage(stage, device=CPU, stop=StopFlag(), **files)
        files['progress_file'].unlink()
        assert len(steps) == 12
        assert {view for view, _ in drawn} == {'plain', 'flip'}
        assert len({size for _, size in drawn}) >= 2
        return steps

    return run


@pytest.fixture
def online(build_stage: Build, live: Callable[[int], dict[str, str]]) -> Build:
    """`online(channels, key=value of data)` is a stage with that teacher in the loop."""
    return lambda channels, **data: build_stage(
        **SETTINGS, **live(channels), data=DATA | data | {'geometry': GEOMETRIES[channels]}
    )


@pytest.fixture
def cached(build_stage: Build, extract_teacher: Callable[..., Path], tmp_path: Path) -> Build:
    """`cached(channels, codec, key=value of data)` is the same stage with the teacher's cache."""

    def build(channels: int, codec: str, **data: Any) -> Stage:
        cache = extract_teacher(channels, tmp_path / codec, '--scale', '150x112', '--codec', codec)
        return build_stage(**SETTINGS, cache=cache, data=DATA | data)

    return build


def difference(found: Losses, wanted: Losses) -> float:
    """The largest relative difference of any loss in any step."""
    assert [step.keys() for step in found] == [step.keys() for step in wanted]
    assert len(wanted[0]) == 10  # two of the detector, two on each of four levels
    pairs = [(one[name], other[name]) for one, other in zip(found, wanted, strict=True) for name in other]
    # A decayed weight of nought leaves nothing to divide by.
    return max(abs(one - other) / max(abs(other), 1e-9) for one, other in pairs)


@pytest.mark.parametrize(
    ('channels', 'codec'), [(16, 'fp16'), (24, 'fp16'), (16, 'int8'), (16, 'lean')], ids=lambda value: str(value)
)
def test_cached_and_online_training_have_the_same_losses(
    channels: int,
    codec: str,
    cached: Build,
    online: Build,
    losses_of: Callable[[Stage], Losses],
) -> None:
    found, wanted = losses_of(cached(channels, codec)), losses_of(online(channels))
    # Before the first step the students are the same.
    assert {name: found[0][name] for name in ('loss_cls', 'loss_bbox')} == {
        name: wanted[0][name] for name in ('loss_cls', 'loss_bbox')
    }
    measured = difference(found, wanted)
    print(f'{channels} channels, {codec}: the losses differ by up to {measured:.1e}')
    assert 0 < measured < TOLERANCES[codec]


def test_with_colours_moved_for_the_student_alone(
    cached: Build, online: Build, losses_of: Callable[[Stage], Losses]
) -> None:
    """The cache holds the maps of the clean images, so the twin's teacher must see those too."""
    found = losses_of(cached(16, 'fp16', photometric=PHOTOMETRIC))
    wanted = losses_of(online(16, photometric=PHOTOMETRIC))
    assert 0 < difference(found, wanted) < TOLERANCES['fp16']
    assert difference(losses_of(online(16))[:1], wanted[:1]) > 10 * TOLERANCES['fp16']


def mirrored(teacher: Teacher) -> Teacher:
    return replace(teacher, features=lambda images: teacher.features(images.flip(-1)))


def in_other_colours(teacher: Teacher) -> Teacher:
    normalisation = teacher.preprocessing.normalisation
    changed = replace(normalisation, to_rgb=not normalisation.to_rgb)
    return replace(teacher, preprocessing=replace(teacher.preprocessing, normalisation=changed))


def in_train_mode(teacher: Teacher) -> Teacher:
    teacher.module.train()
    return teacher


@pytest.mark.parametrize('spoil', [mirrored, in_other_colours, in_train_mode])
def test_the_tolerance_notices_another_input_or_mode(
    spoil: Callable[[Teacher], Teacher], online: Build, losses_of: Callable[[Stage], Losses]
) -> None:
    """Else the test above could not fail."""
    stage = online(16)
    assert isinstance(stage.source, LiveTeacher)
    spoiled = replace(stage, source=replace(stage.source, teacher=spoil(stage.source.teacher)))
    found, wanted = losses_of(spoiled), losses_of(online(16))
    assert difference(found[:1], wanted[:1]) > 10 * TOLERANCES['fp16']
