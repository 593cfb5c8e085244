"""What a stage trains on: the student's pixels, the teacher's maps and the masks belong to one another.

The teacher is run on one sample after another, and must give what its cache and the teacher in the loop give: for
shuffled batches of images of several sizes, resized, in both views, with padding of the image's own and of the batch.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache.format.codecs import EncodedMaps, batch_images, encode
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.preprocessing import normalise
from mtpd.detectors.references import load_teacher
from mtpd.detectors.samples import Sample, collate
from mtpd.detectors.teachers import Teacher
from mtpd.errors import MtpdError
from mtpd_train.data.dataset import DetectionDataset
from mtpd_train.data.sampling import WINDOW, Request
from mtpd_train.stage import Stage
from mtpd_train.teachers.teacher_source import ReadAhead
from mtpd_train.training.step import batch_masks, loaded, step_losses

CPU = torch.device('cpu')
GEOMETRIES = {16: {'scale': '150x112'}, 24: {'scale': '150x112', 'pad_size': [112, 150]}}
SCALE = (150, 112)  # resizes every image; some sides are then whole cells, most are followed by padding


@pytest.fixture(scope='module', params=[16, 24], ids=['divisor', 'letterbox'])
def channels(request: pytest.FixtureRequest) -> int:
    """Which teacher: the one that pads to a divisor, or the one that pads to a fixed size."""
    assert isinstance(request.param, int)
    return request.param


@pytest.fixture(scope='module')
def teacher(channels: int, teachers: dict[int, Path]) -> Teacher:
    run = teachers[channels]
    return load_teacher(
        str(run / 'student_config.py'), checkpoint=run / 'student.pth', options=InputOptions(SCALE), device=CPU
    )


@pytest.fixture(scope='module')
def exact_cache(channels: int, tmp_path_factory: pytest.TempPathFactory, extract_teacher: Callable[..., Path]) -> Path:
    """In half precision, so that the comparison can be tight."""
    folder = tmp_path_factory.mktemp('exact') / 'cache'
    scale = 'x'.join(map(str, SCALE))
    return extract_teacher(channels, folder, '--scale', scale, '--codec', 'fp16', '--shard-mb', '0.05')


@pytest.fixture
def stage(build_stage: Callable[..., Stage], exact_cache: Path) -> Stage:
    return build_stage(cache=exact_cache, distill=[{'loss': 'masked_mse'}], data={'batch_size': 5, 'val': None})


@pytest.fixture(params=['cache', 'teacher'])
def either(
    request: pytest.FixtureRequest,
    build_stage: Callable[..., Stage],
    channels: int,
    exact_cache: Path,
    live: Callable[[int], dict[str, str]],
) -> Stage:
    """A stage with a cache, or with the teacher in the loop."""
    data: dict[str, Any] = {'batch_size': 5, 'val': None}
    if request.param == 'cache':
        return build_stage(cache=exact_cache, distill=[{'loss': 'masked_mse'}], data=data)
    return build_stage(
        **live(channels), distill=[{'loss': 'masked_mse'}], data=data | {'geometry': GEOMETRIES[channels]}
    )


def live_maps(teacher: Teacher, sample: Sample) -> dict[str, Tensor]:
    """The teacher on the pixels of a training sample, at the image's own padding."""
    padded = teacher.preprocessing.geometry.padded(sample.original)
    images = normalise([sample.image], padded=padded, normalisation=teacher.preprocessing.normalisation)
    return {name: maps[0] for name, maps in teacher.maps(images).items()}


def batch_maps(stage: Stage, samples: Sequence[Sample], ahead: ReadAhead) -> dict[str, Tensor]:
    assert stage.source is not None
    maps = stage.source.maps(samples, ahead, levels=stage.teacher_levels, device=CPU)
    return {name: one.values() for name, one in maps.items()}


def test_maps_are_those_of_the_drawn_samples(either: Stage, teacher: Teacher) -> None:
    seen: set[tuple[int, str]] = set()
    has_batch_padding = False
    for epoch in range(3):
        for samples, ahead in loaded(either, either.epoch_batches(epoch)):
            images = collate(samples, preprocessing=either.student.preprocessing, device=CPU)
            padded = images.shape[2], images.shape[3]
            maps = batch_maps(either, samples, ahead)
            grids = {level.name: level.grid(*padded) for level in either.teacher_levels}
            assert {name: tuple(one.shape[2:]) for name, one in maps.items()} == grids
            for number, sample in enumerate(samples):
                seen.add((sample.image_id, sample.view))
                live = live_maps(teacher, sample)
                assert live.keys() == maps.keys()
                for name, want in live.items():
                    height, width = want.shape[1:]
                    got = maps[name][number]
                    tolerance = 1e-3 * want.abs().max().item()
                    torch.testing.assert_close(got[:, :height, :width], want, rtol=1e-3, atol=tolerance)
                    beyond = got.clone()
                    beyond[:, :height, :width] = 0
                    assert not beyond.any()
                    has_batch_padding |= got.shape != want.shape
    assert has_batch_padding
    assert {view for _, view in seen} == {'plain', 'flip'}
    assert {image_id for image_id, _ in seen} == set(either.train_set.sizes(with_objects=True))


def test_the_comparison_tells_views_and_images_apart(either: Stage, teacher: Teacher) -> None:
    """Else the test above could not fail."""
    samples, ahead = next(loaded(either, either.epoch_batches(0)))
    maps = batch_maps(either, samples, ahead)
    for name, level in maps.items():
        live = [live_maps(teacher, sample)[name] for sample in samples]
        for number, want in enumerate(live):
            height, width = want.shape[1:]
            spread = want.std()
            own = level[number, :, :height, :width]
            assert (own.flip(-1) - want).abs().mean() > 0.03 * spread
            for other in set(range(len(samples))) - {number}:
                if live[other].shape == want.shape:
                    assert (level[other, :, :height, :width] - want).abs().mean() > 0.03 * spread


def test_masks_are_true_exactly_at_image_cells(stage: Stage) -> None:
    for samples, _ in loaded(stage, stage.epoch_batches(0)):
        images = collate(samples, preprocessing=stage.student.preprocessing, device=CPU)
        padded = (images.shape[2], images.shape[3])
        masks = batch_masks([one.resized for one in samples], levels=stage.teacher_levels, padded=padded, device=CPU)
        for level in stage.teacher_levels:
            for number, sample in enumerate(samples):
                pixels = np.zeros(padded, dtype=bool)
                pixels[: sample.image.shape[1], : sample.image.shape[2]] = True
                assert np.array_equal(masks[level.name][number, 0].numpy(), pixels[:: level.stride, :: level.stride])


def test_the_students_maps_lie_on_the_teachers_grid(either: Stage) -> None:
    samples, ahead = next(loaded(either, either.epoch_batches(0)))
    images = collate(samples, preprocessing=either.student.preprocessing, device=CPU)
    student_maps = either.student.module.extract_feat(images)  # type: ignore[operator]  # mmdet is untyped
    maps = batch_maps(either, samples, ahead)
    assert [one.shape[2:] for one in student_maps] == [maps[level.name].shape[2:] for level in either.teacher_levels]


def test_only_image_cells_count_in_a_step(stage: Stage) -> None:
    """What the teacher made of padding changes no loss; what it made of the last image cells does."""
    samples, encoded = next(loaded(stage, stage.epoch_batches(0)))
    changed: dict[str, dict[str, EncodedMaps]] = {'padding': {}, 'image': {}}
    for where, level in itertools.product(changed, stage.teacher_levels):
        maps = encoded.maps[level.name]
        batch = maps.codes.clone()
        for sample, codes in zip(samples, batch, strict=True):
            rows, columns = (-(-side // level.stride) for side in sample.resized)
            if where == 'padding':
                codes[:, rows:], codes[:, :, columns:] = 99, 99
            else:
                codes[:, rows - 1, columns - 1] += 1
        changed[where][level.name] = replace(maps, codes=batch)
    before, padding, image = (
        {name: loss.item() for name, loss in step_losses(stage, samples, codes).items()}
        for codes in (encoded, ReadAhead(changed['padding']), ReadAhead(changed['image']))
    )
    assert padding == before
    distilled = {name for name in before if name.startswith('distill/')}
    assert len(distilled) == 4
    assert {name for name in before if image[name] != before[name]} == distilled


def test_a_batch_of_one_view_only(build_stage: Callable[..., Stage], exact_cache: Path, teacher: Teacher) -> None:
    stage = build_stage(cache=exact_cache, distill=[{'loss': 'masked_mse', 'levels': ['p4']}], data={'flip': 1.0})
    samples, encoded = next(loaded(stage, stage.epoch_batches(0)))
    assert {sample.view for sample in samples} == {'flip'}
    assert set(encoded.maps) == {'p4'}
    (maps,) = batch_maps(stage, samples, encoded).values()
    want = live_maps(teacher, samples[0])['p4']
    torch.testing.assert_close(maps[0, :, : want.shape[1], : want.shape[2]], want, rtol=1e-3, atol=1e-2)


def test_samples_that_are_not_those_of_the_codes_are_noticed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = stage.epoch_batches(0)
    other = next(request for request in batches[1])
    dataset = type(stage.train_set)
    original = dataset.__getitem__

    def mixed_up(self: DetectionDataset, request: Request) -> Sample | MtpdError:
        return original(self, other if request == batches[0][0] else request)

    monkeypatch.setattr(dataset, '__getitem__', mixed_up)
    with pytest.raises(AssertionError):
        next(loaded(stage, batches))


def test_shuffle_by_the_shards_of_the_cache(build_stage: Callable[..., Stage], exact_cache: Path) -> None:
    data = {'batch_size': 5, 'val': None}
    full, by_shard = (
        build_stage(cache=exact_cache, distill=[{'loss': 'masked_mse'}], data=data | {'shuffle': shuffle})
        for shuffle in ('full', 'shards')
    )
    reader = mtpd.cache.open(exact_cache)
    images = full.train_set.sizes(with_objects=True)
    assert full.shards is None
    assert by_shard.shards == {one: reader.shard(one) for one in images}
    assert len(set(by_shard.shards.values())) > WINDOW
    orders = [[one for batch in stage.epoch_batches(0) for one in batch] for stage in (full, by_shard)]
    assert orders[0] != orders[1]
    assert all({one.image_id for one in order} == set(images) for order in orders)


def test_rotated_codes_come_back_in_the_teachers_channels() -> None:
    basis = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    maps = [torch.randn(6, *grid, generator=torch.Generator().manual_seed(1)) for grid in ((3, 5), (4, 4))]
    encoded = [encode(one[None], 'lean', basis=basis) for one in maps]
    found = batch_images(encoded).values()
    assert found.shape == (2, 6, 4, 5)
    for number, one in enumerate(encoded):
        height, width = maps[number].shape[1:]
        torch.testing.assert_close(found[number, :, :height, :width], one.values()[0])
        assert not found[number, :, height:].any()
        assert not found[number, :, :, width:].any()
