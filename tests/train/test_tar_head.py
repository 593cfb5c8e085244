"""Distillation of a two-stage teacher's responses, from its cache through `mtpd-train`."""

import dataclasses
import math
import statistics
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.detectors.detector import CapturedRois
from mtpd.detectors.of_mmdet.detector_heads import captured_rois
from mtpd.detectors.samples import collate
from mtpd.heads.roi_head import RoiHead, RoiPredictions
from mtpd.heads.rois import BoxCoder
from mtpd_train.stage import Stage
from mtpd_train.teachers.responses import response_losses
from mtpd_train.training.step import add_gradient, loaded, step_losses

CPU = torch.device('cpu')
ONE_STAGE = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
NAMES = ['distill/tar_head/class', 'distill/tar_head/box']
Make = Callable[..., Path]


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory, extract_two_stage: Make) -> Path:
    """The cache of a two-stage teacher. Not to be changed."""
    return extract_two_stage(tmp_path_factory.mktemp('two_stage') / 'cache', '--rois', 20)


@pytest.fixture
def build_student(build_stage: Callable[..., Stage], tiny_two_stage: Path, cache: Path) -> Callable[..., Stage]:
    """`build_student(mode=..., ...)` is a stage whose tiny Faster R-CNN learns by `tar_head` with these options."""

    def build(**options: Any) -> Stage:
        entry = {'loss': 'tar_head'} | options
        return build_stage(student=str(tiny_two_stage), cache=cache, distill=[entry], data={'val': None})

    return build


def first_batch(stage: Stage) -> tuple[Any, Any]:
    batches = stage.epoch_batches(0)[:1]
    return next(iter(loaded(stage, batches)))


@pytest.mark.parametrize('mode', ['head_on_gpu', 'cached_rois'])
def test_a_run(
    mode: str,
    tmp_path: Path,
    train: Callable[..., Any],
    records: Callable[..., list[dict[str, Any]]],
    write_stage: Make,
    cache: Path,
    tiny_two_stage: Path,
) -> None:
    distill = [{'loss': 'tar_head', 'mode': mode}]
    stage = write_stage(
        tmp_path / 'stage.yaml',
        student=str(tiny_two_stage),
        cache=cache,
        distill=distill,
        data={'val': None},
        optim={'epochs': 2},
    )
    train(stage, '--out', tmp_path / 'run')
    found = records(tmp_path / 'run', 'train')
    assert len(found) == 2
    for record in found:
        assert all(math.isfinite(value) for value in record['losses'].values())
        assert record['losses'][NAMES[0]] > 0
        # A random teacher's favourite class is seldom the true one, and only then its stored deltas are of use.
        assert record['losses'][NAMES[1]] > 0 or mode == 'cached_rois'
        assert list(record['decay']) == NAMES
    # Of 6 steps the last ones of the epochs are the third and the sixth.
    assert [record['decay'][NAMES[0]] for record in found] == [pytest.approx(4 / 6), pytest.approx(1 / 6)]
    state = torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict']
    assert not [name for name in state if 'tar' in name or 'teacher' in name]


def test_the_teachers_head_runs_on_its_maps_and_the_students_proposals(
    build_student: Callable[..., Stage], tiny_two_stage: Path
) -> None:
    """Against mmdet's own teacher, rebuilt, on the maps out of the cache."""
    stage = build_student(class_gate='none', box_gate='none', decay={'kind': 'none'})
    samples, ahead = first_batch(stage)
    assert stage.responses is not None
    assert [level.name for level in stage.teacher_levels] == ['p2', 'p3', 'p4', 'p5']
    torch.manual_seed(0)
    losses = step_losses(stage, samples, ahead)
    # Once more, step by step; the same seed samples the same proposals.
    student: Any = stage.student.module
    images = collate(samples, preprocessing=stage.student.preprocessing, device=CPU)
    torch.manual_seed(0)
    with captured_rois(student) as captured:
        stage.student.losses(images, samples)
    rois, predictions = captured.require()
    assert len(rois) == 32 * len(samples)
    assert set(rois[:, 0].tolist()) == set(range(len(samples)))
    assert stage.source is not None
    maps = stage.source.maps(samples, ahead, levels=stage.teacher_levels, device=CPU)
    from mtpd.detectors.of_mmdet.models import build_detector, load_config

    teacher: Any = build_detector(load_config(str(tiny_two_stage)))
    teacher.load_state_dict(stage.source.weights(), strict=False)
    with torch.no_grad():
        wanted = teacher.roi_head._bbox_forward(tuple(one.values() for one in maps.values()), rois)
    p = wanted['cls_score'].double().log_softmax(1)
    q = predictions.logits.double().log_softmax(1)
    divergence = (p.exp() * (p - q)).sum().item() / len(rois)
    assert losses[NAMES[0]].item() == pytest.approx(divergence, rel=1e-4)


def test_the_students_head_runs_on_the_teachers_proposals(
    tmp_path: Path, build_stage: Callable[..., Stage], tiny_two_stage: Path, extract_two_stage: Make
) -> None:
    # At another size than that of the images. Proposals need no mirrored view of the maps.
    cache = extract_two_stage(tmp_path / 'cache', '--rois', 20, '--scale', '192x160', '--views', 'plain')
    entry = {'loss': 'tar_head', 'mode': 'cached_rois', 'class_gate': 'none', 'decay': {'kind': 'none'}}
    stage = build_stage(student=str(tiny_two_stage), cache=cache, distill=[entry], data={'val': None})
    assert stage.teacher_levels == ()
    samples, ahead = first_batch(stage)
    assert {sample.view for sample in samples} == {'plain', 'flip'}
    torch.manual_seed(0)
    losses = step_losses(stage, samples, ahead)
    # By hand: boxes through mmdet's own way of resizing and mirroring, then the student's own head.
    student: Any = stage.student.module
    images = collate(samples, preprocessing=stage.student.preprocessing, device=CPU)
    reader = mtpd.cache.open(cache)
    divergence, num_rois = 0.0, 0
    with torch.no_grad():
        maps = student.extract_feat(images)
        for number, sample in enumerate(samples):
            stored = reader.rois(sample.image_id)
            height, width = sample.original
            boxes = stored.boxes * torch.tensor([sample.resized[1] / width, sample.resized[0] / height] * 2)
            if sample.view == 'flip':
                boxes[:, [0, 2]] = sample.resized[1] - boxes[:, [2, 0]]
            rois = torch.cat([torch.full((len(boxes), 1), float(number)), boxes], dim=1)
            q = student.roi_head._bbox_forward(maps, rois)['cls_score'].double().log_softmax(1)
            p = stored.probabilities.double().clamp(min=2.0**-24)
            p /= p.sum(1, keepdim=True)
            divergence += (p * (p.log() - q)).sum().item()
            num_rois += len(boxes)
    assert num_rois > 10 * len(samples)
    assert losses[NAMES[0]].item() == pytest.approx(divergence / num_rois, rel=1e-4)
    torch.autograd.backward(losses[NAMES[0]])
    reached = {name.split('.')[0] for name, one in student.named_parameters() if one.grad is not None}
    assert reached == {'backbone', 'neck', 'roi_head'}


def test_heads_do_not_run_for_weights_that_have_decayed_to_nothing(
    build_student: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = build_student(decay={'kind': 'step', 'at': [0.5]})
    samples, ahead = first_batch(stage)
    assert step_losses(stage, samples, ahead, progress=0.4)[NAMES[0]] > 0

    def refused(self: RoiHead, *_: Any) -> RoiPredictions:
        raise AssertionError('the head ran')

    monkeypatch.setattr(RoiHead, 'forward', refused)
    losses = step_losses(stage, samples, ahead, progress=0.5)
    assert [losses[name].item() for name in NAMES] == [0, 0]
    assert stage.decay_factors(progress=0.5) == dict.fromkeys(NAMES, 0)


def test_boxes_are_compared_in_the_students_units(build_student: Callable[..., Stage]) -> None:
    """A student that says the same as its teacher, with another box coder, has nothing to learn."""
    stage = build_student(box_gate='none')
    assert stage.responses is not None
    head = stage.responses.head
    assert head is not None
    assert stage.source is not None
    samples, ahead = first_batch(stage)
    collate(samples, preprocessing=stage.student.preprocessing, device=CPU)
    maps = stage.source.maps(samples, ahead, levels=stage.teacher_levels, device=CPU)
    objects = [sample.objects.boxes for sample in samples]
    rois = torch.cat([torch.nn.functional.pad(one, (1, 0), value=number) for number, one in enumerate(objects)])
    answers = head([one.values() for one in maps.values()], rois)
    raw = BoxCoder(head.record.means, head.record.stds).to_raw(answers.deltas.view(len(rois), -1, 4))
    coder = BoxCoder((0.1, 0.0, 0.2, 0.0), (0.4, 0.4, 0.8, 0.6))
    for units, wanted in ((coder, 0.0), (stage.responses.coder, None)):
        captured = CapturedRois([rois], [RoiPredictions(answers.logits, units.from_raw(raw).flatten(1))])
        responses = dataclasses.replace(stage.responses, coder=coder)
        student: dict[str, Any] = {'student': stage.student, 'maps': [rois], 'captured': captured}
        loss = response_losses(responses, samples, maps, (), **student, progress=0.0)[NAMES[1]].item()
        assert loss == pytest.approx(wanted, abs=1e-5) if wanted is not None else loss > 0.1


def test_only_the_student_gets_a_gradient(build_student: Callable[..., Stage]) -> None:
    stage = build_student()
    samples, ahead = first_batch(stage)
    scaler = torch.amp.GradScaler('cpu', enabled=False)
    add_gradient(stage, samples, ahead, share=1.0, progress=0.0, scaler=scaler)
    assert stage.responses is not None
    assert stage.responses.head is not None
    assert list(stage.responses.head.parameters())
    assert all(one.grad is None and not one.requires_grad for one in stage.responses.head.parameters())
    assert not list(stage.distiller.parameters())
    # The response losses alone reach the student's backbone through its RoI head.
    stage.student.module.zero_grad()
    losses = step_losses(stage, samples, ahead)
    torch.autograd.backward(losses[NAMES[0]] + losses[NAMES[1]])
    reached = {name.split('.')[0] for name, one in stage.student.module.named_parameters() if one.grad is not None}
    assert reached == {'backbone', 'neck', 'roi_head'}


def test_the_loss_fades_with_the_stage(build_student: Callable[..., Stage]) -> None:
    stage = build_student()
    samples, ahead = first_batch(stage)
    values = []
    for progress in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        losses = step_losses(stage, samples, ahead, progress=progress)
        values.append([losses[name].item() for name in NAMES])
    assert values[1] == pytest.approx([one / 2 for one in values[0]], rel=1e-5)
    assert values[2] == [0.0, 0.0]


def test_half_precision(build_stage: Callable[..., Stage], tiny_two_stage: Path, cache: Path) -> None:
    options = {'student': str(tiny_two_stage), 'cache': cache, 'distill': [{'loss': 'tar_head'}]}
    values: dict[str, list[float]] = {'fp32': [], 'bf16': []}
    for precision, of_batches in values.items():
        stage = build_stage(**options, data={'val': None}, optim={'precision': precision})
        for samples, ahead in islice(loaded(stage, stage.epoch_batches(0), num_workers=0), 4):
            torch.manual_seed(0)
            losses = step_losses(stage, samples, ahead)
            assert losses[NAMES[0]].dtype == losses[NAMES[1]].dtype == torch.float32
            of_batches.append(losses[NAMES[0]].item())
    # In half precision other proposals may be chosen, which then decide the loss of a batch.
    ratios = [one / other for one, other in zip(values['bf16'], values['fp32'], strict=True)]
    assert statistics.median(ratios) == pytest.approx(1, abs=0.1)


def test_beside_a_loss_on_maps(build_stage: Callable[..., Stage], tiny_two_stage: Path, cache: Path) -> None:
    distill = [{'loss': 'masked_mse', 'levels': ['p6']}, {'loss': 'tar_head'}]
    stage = build_stage(student=str(tiny_two_stage), cache=cache, distill=distill, data={'val': None})
    assert [level.name for level in stage.teacher_levels] == ['p2', 'p3', 'p4', 'p5', 'p6']
    losses = step_losses(stage, *first_batch(stage))
    assert {*NAMES, 'distill/masked_mse/p6'} <= losses.keys()
    assert stage.decay_factors(progress=0.5) == dict.fromkeys(NAMES, 0.5)


def test_a_teacher_in_the_loop(
    build_stage: Callable[..., Stage], tiny_two_stage: Path, random_weights: Make, cache: Path
) -> None:
    """It says what its cache would say: the same weights, the same maps to half precision, the same proposals."""
    teacher = {'teacher': str(tiny_two_stage), 'checkpoint': random_weights(tiny_two_stage)}
    values = []
    for source in (teacher, {'cache': cache}):
        stage = build_stage(student=str(tiny_two_stage), distill=[{'loss': 'tar_head'}], data={'val': None}, **source)
        torch.manual_seed(0)
        losses = step_losses(stage, *first_batch(stage))
        values.append([losses[name].item() for name in NAMES])
    assert values[0] == pytest.approx(values[1], rel=1e-3)
