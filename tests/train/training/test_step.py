"""What one optimizer step does: accumulated, clipped and half-precision gradients, batch statistics."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from torch import Tensor

from mtpd.system.interrupt import StopFlag
from mtpd_train.stage import Stage
from mtpd_train.teachers.cached_teacher import cached_teacher
from mtpd_train.training.loop import train_stage
from mtpd_train.training.step import loaded, step_losses

CPU = torch.device('cpu')
BuildStage = Callable[..., Stage]
FROZEN = {'backbone.norm_eval': True}  # batch statistics would tell batches of 4 from batches of 8


@pytest.fixture
def run_stage(tmp_path: Path) -> Callable[[Stage], list[dict[str, Any]]]:
    """Trains a stage in place and returns its records."""

    def run(stage: Stage) -> list[dict[str, Any]]:
        files: dict[str, Any] = {'progress_file': tmp_path / 'progress.pth', 'metrics_file': tmp_path / 'metrics.jsonl'}
        for file in files.values():
            file.unlink(missing_ok=True)
        train_stage(stage, device=CPU, stop=StopFlag(), **files)
        return [json.loads(line) for line in files['metrics_file'].read_text().splitlines()]

    return run


def state(stage: Stage) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in stage.student.module.state_dict().items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
    """Everything that training changed, as one vector."""
    return torch.cat([(after[name] - before[name]).flatten().double() for name in before])


def plain(coco: Path, *, batch_size: int, **optim: Any) -> dict[str, Any]:
    """A stage of one SGD step over eight images in their plain view, without warm-up and decay."""
    settings = {'type': 'sgd', 'lr': 1e-3, 'warmup_iters': 0, 'weight_decay': 0.0, 'grad_clip': None}
    data = {'coco': str(coco), 'val': None, 'flip': 0.0, 'batch_size': batch_size}
    return {'model': FROZEN, 'data': data, 'optim': settings | optim}


@pytest.mark.parametrize(('batch_size', 'accumulate'), [(4, 2), (2, 4), (1, 8), (4, 5)])
def test_accumulated_batches_are_one_large_batch(
    batch_size: int, accumulate: int, uniform_set: Path, build_stage: BuildStage, run_stage: Any
) -> None:
    """(4, 5): two batches are all that there are, so the step has two."""
    whole = build_stage(**plain(uniform_set, batch_size=8))
    parts = build_stage(**plain(uniform_set, batch_size=batch_size, accumulate=accumulate))
    before = state(whole)
    assert all(torch.equal(value, state(parts)[name]) for name, value in before.items())
    records = [run_stage(stage) for stage in (whole, parts)]
    assert [len(one) for one in records] == [1, 1]
    assert [one[0]['step'] for one in records] == [1, 1]
    assert records[1][0]['losses'] == pytest.approx(records[0][0]['losses'], rel=1e-4)
    one, other = moved(before, state(whole)), moved(before, state(parts))
    assert one.norm() > 0
    assert (one - other).norm() < 1e-4 * one.norm()


def test_the_last_step_of_an_epoch_may_have_fewer_batches(
    uniform_set: Path, build_stage: BuildStage, run_stage: Any
) -> None:
    """Eight images, 3 a batch: batches of 3 and 3, then one of 2, which is a step of its own."""
    stage = build_stage(**plain(uniform_set, batch_size=3, accumulate=2, lr=1e-9))
    before = state(stage)
    (record,) = run_stage(stage)
    assert record['step'] == 2
    # At so small a rate both steps have the gradient at the start; the second is not halved.
    once = build_stage(**plain(uniform_set, batch_size=8, lr=1e-9))
    run_stage(once)
    ratio = moved(before, state(stage)).norm() / moved(before, state(once)).norm()
    assert ratio == pytest.approx(1 + 1 + 0.9, rel=0.2)  # 0.9: momentum


def test_the_gradient_is_clipped(uniform_set: Path, build_stage: BuildStage, run_stage: Any) -> None:
    free = build_stage(**plain(uniform_set, batch_size=8, lr=0.5))
    clipped = build_stage(**plain(uniform_set, batch_size=8, lr=0.5, grad_clip=0.01))
    before = state(free)
    run_stage(free)
    (record,) = run_stage(clipped)
    free_step, clipped_step = moved(before, state(free)), moved(before, state(clipped))
    assert clipped_step.norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)
    assert record['grad_norm'] == pytest.approx(free_step.norm().item() / 0.5, rel=1e-3)
    cosine = torch.dot(clipped_step, free_step) / (clipped_step.norm() * free_step.norm())
    assert cosine == pytest.approx(1, abs=1e-4)


def test_the_learning_rates_of_a_run(uniform_set: Path, build_stage: BuildStage, run_stage: Any) -> None:
    settings = plain(uniform_set, batch_size=8, epochs=5, milestones=[2, 4], warmup_iters=2, warmup_ratio=0.5)
    records = run_stage(build_stage(**settings))
    assert [record['lr'] for record in records] == pytest.approx([5e-4, 7.5e-4, 1e-4, 1e-4, 1e-5])


def test_bf16_on_a_cpu(uniform_set: Path, build_stage: BuildStage, run_stage: Any) -> None:
    full, half = (build_stage(**plain(uniform_set, batch_size=8, precision=one)) for one in ('fp32', 'bf16'))
    before = state(full)
    records = [run_stage(stage)[0] for stage in (full, half)]
    assert records[1]['losses'] == pytest.approx(records[0]['losses'], rel=0.05)
    assert records[1]['losses'] != records[0]['losses']
    assert all(value.dtype != torch.bfloat16 for value in state(half).values())
    one, other = moved(before, state(full)), moved(before, state(half))
    assert torch.dot(one, other) > 0.9 * one.norm() * other.norm()


@pytest.mark.parametrize('norm_eval', [False, True])
def test_batch_statistics_move_only_where_the_config_lets_them(
    norm_eval: bool, uniform_set: Path, build_stage: BuildStage, run_stage: Any
) -> None:
    stage = build_stage(**plain(uniform_set, batch_size=8, lr=1e-9) | {'model': {'backbone.norm_eval': norm_eval}})
    before = state(stage)
    # Building the student runs it once to find its levels; that must not have moved them either.
    assert not before['backbone.bn1.running_mean'].any()
    run_stage(stage)
    assert torch.equal(before['backbone.bn1.running_mean'], state(stage)['backbone.bn1.running_mean']) == norm_eval


def test_training_goes_on_in_training_mode_after_an_evaluation(build_stage: BuildStage, run_stage: Any) -> None:
    """With batch statistics, an epoch in eval mode would leave `num_batches_tracked` behind."""
    stage = build_stage(optim={'epochs': 2})
    records = run_stage(stage)
    assert [record['kind'] for record in records] == ['train', 'evaluation'] * 2
    assert stage.student.module.get_buffer('backbone.bn1.num_batches_tracked') == 6
    # Heads whose losses change in the course of training ask mmengine how far it is: before the sixth step.
    hub = MessageHub.get_current_instance()
    assert (hub.get_info('epoch'), hub.get_info('iter')) == (1, 5)


def test_plain_training_asks_for_no_neck(build_stage: BuildStage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = build_stage()
    samples, encoded = next(loaded(stage, stage.epoch_batches(0)))
    needless = 'mtpd.detectors.of_mmdet.detector.captured_maps'
    monkeypatch.setattr(needless, lambda *_, **__: pytest.fail('the neck is not needed'))
    assert set(step_losses(stage, samples, encoded)) == {'loss_cls', 'loss_bbox'}


RESNET = {'backbone.depth': 18, 'backbone.base_channels': 8, 'neck.in_channels': [8, 16, 32, 64]}
REPPOINTS = RESNET | {
    'neck.out_channels': 16,
    'neck.norm_cfg.num_groups': 4,
    'bbox_head.norm_cfg.num_groups': 4,
    **dict.fromkeys(('bbox_head.in_channels', 'bbox_head.feat_channels', 'bbox_head.point_feat_channels'), 16),
}


@pytest.mark.parametrize('hook_point', ['neck', 'neck.fpn_convs.conv'])
def test_a_students_maps_are_taken_where_its_teachers_are(
    hook_point: str, build_stage: BuildStage, caches: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Norms that double their output change nothing before them."""
    monkeypatch.setattr(
        'mtpd_train.stage.cached_teacher',
        lambda one, **options: replace(cached_teacher(one, **options), hook_point=hook_point),
    )
    student = {'student': 'reppoints-moment_r50_fpn-gn_head-gn_1x_coco', 'model': REPPOINTS}
    stage = build_stage(**student, cache=caches[16], distill=[{'loss': 'masked_mse'}])
    assert stage.hook_point == hook_point
    samples, encoded = next(loaded(stage, stage.epoch_batches(0)))
    before = step_losses(stage, samples, encoded)
    for convolution in stage.student.module.get_submodule('neck.fpn_convs').children():
        convolution.get_parameter('gn.weight').data *= 2
    after = step_losses(stage, samples, encoded)
    distilled = [name for name in before if name.startswith('distill/')]
    assert len(distilled) == 3
    for name in distilled:
        assert torch.equal(before[name], after[name]) == (hook_point == 'neck.fpn_convs.conv')
    assert build_stage(cache=caches[16], distill=[{'loss': 'masked_mse'}]).hook_point == 'neck'


def test_the_options_of_pkd_and_cwd_reach_them(build_stage: BuildStage, caches: dict[int, Path]) -> None:
    def losses(*distill: dict[str, Any]) -> dict[str, float]:
        stage = build_stage(cache=caches[24], distill=list(distill))
        samples, encoded = next(loaded(stage, stage.epoch_batches(0)))
        stage.student.module.train()
        torch.manual_seed(0)
        return {name: value.item() for name, value in step_losses(stage, samples, encoded).items()}

    plain = losses({'loss': 'pkd', 'levels': ['p3']}, {'loss': 'cwd', 'levels': ['p3']})
    assert all(plain[f'distill/{loss}/p3'] > 0 for loss in ('pkd', 'cwd'))
    changed = losses(
        {'loss': 'pkd', 'levels': ['p3'], 'weight': 30.0, 'adapter': 'always'},
        {'loss': 'cwd', 'levels': ['p3'], 'weight': 30.0, 'temperature': 1e6, 'adapter': 'always'},
    )
    assert changed['distill/pkd/p3'] == pytest.approx(3 * plain['distill/pkd/p3'], rel=1e-5)
    # Hot distributions differ by (T - S) / tau, and tau^2 KL tends to half the variance of T - S: not three times.
    assert changed['distill/cwd/p3'] != pytest.approx(3 * plain['distill/cwd/p3'], rel=1e-2)


def test_losses_get_the_objects_of_the_view_that_was_drawn(build_stage: BuildStage, caches: dict[int, Path]) -> None:
    """The Gaussian masks lie where the annotations, resized and perhaps mirrored by hand, say."""
    stage = build_stage(cache=caches[24], distill=[{'loss': 'tar_feature', 'levels': ['p3']}], data={'flip': 0.5})
    given: dict[str, Any] = {}
    stage.distiller.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    seen = set()
    for samples, encoded in loaded(stage, stage.epoch_batches(0)):
        step_losses(stage, samples, encoded)
        for sample, boxes in zip(samples, given['boxes'], strict=True):
            seen.add(sample.view)
            (image,) = [one for one in stage.train_set.coco.images if one.id == sample.image_id]
            height, width = sample.resized
            want = torch.tensor([one.box for one in stage.train_set.coco.annotations[image.id] if not one.is_crowd])
            want *= torch.tensor([width / image.width, height / image.height] * 2)
            if sample.view == 'flip':
                want = torch.stack([width - want[:, 2], want[:, 1], width - want[:, 0], want[:, 3]], 1)
            torch.testing.assert_close(boxes, want, rtol=0, atol=1e-3)
    assert seen == {'plain', 'flip'}


def test_weights_decay_by_optimizer_steps(build_stage: BuildStage, run_stage: Any, caches: dict[int, Path]) -> None:
    """Three batches an epoch make two steps, the first of two batches: four steps in all."""
    distill = {'loss': 'pkd', 'levels': ['p3']}
    optim = {'type': 'sgd', 'lr': 1e-9, 'epochs': 2, 'accumulate': 2}
    records = []
    for decay in ({'kind': 'none'}, {'kind': 'linear'}):
        records.append(run_stage(build_stage(cache=caches[24], distill=[distill | {'decay': decay}], optim=optim)))
    full, decayed = ([one for one in record if one['kind'] == 'train'] for record in records)
    assert [one['decay'] for one in full] == [{}, {}]
    # What is logged is the factor of the last step, and the losses as they entered the sum.
    assert [one['decay'] for one in decayed] == [{'distill/pkd/p3': 0.75}, {'distill/pkd/p3': 0.25}]
    for epoch, factors in enumerate(((1, 1, 0.75), (0.5, 0.5, 0.25))):
        whole, part = (one[epoch]['losses']['distill/pkd/p3'] for one in (full, decayed))
        # At so small a rate each batch has about the same loss.
        assert part / whole == pytest.approx(sum(factors) / 3, rel=0.03)
        assert decayed[epoch]['losses']['loss_cls'] == pytest.approx(full[epoch]['losses']['loss_cls'], rel=1e-3)


@pytest.mark.slow
def test_gradients_that_overflow_half_precision_are_skipped(
    uniform_set: Path, build_stage: BuildStage, run_stage: Any
) -> None:
    """Loss scaling, on a CPU: the program refuses that because it is slow, but the steps are those of a GPU.

    The loss is scaled by 65536 at first, which is too much for half precision here, then by half of it, until it fits.
    A skipped step leaves the learning rate alone, and what became of the gradient is no reason to stop.
    """
    settings = plain(uniform_set, batch_size=8, precision='fp16', epochs=5, schedule='cosine', grad_clip=1.0)
    stage = build_stage(**settings | {'model': FROZEN | {'bbox_head.loss_bbox.loss_weight': 10.0}})
    before = state(stage)
    records = run_stage(stage)
    skipped = [record.get('not_finite') == ['grad_norm'] for record in records]
    num_skipped = sum(skipped)
    assert skipped == [True] * num_skipped + [False] * (5 - num_skipped)
    assert 1 <= num_skipped < 5
    schedule = [1e-3 * (1 + math.cos(math.pi * step / 5)) / 2 for step in range(5)]
    assert [record['lr'] for record in records] == pytest.approx([1e-3] * num_skipped + schedule[: 5 - num_skipped])
    # One clipped step, or several with momentum: only those that were taken moved the weights.
    assert 0 < moved(before, state(stage)).norm() < 1e-3 * (5 - num_skipped) ** 2


@pytest.mark.parametrize('option', ['channels_last', 'activation_checkpointing'])
def test_options_that_change_no_result(
    option: str, caches: dict[int, Path], build_stage: BuildStage, run_stage: Any
) -> None:
    """Losses and weights of two distilled steps."""
    distill = [{'loss': 'masked_mse'}, {'loss': 'mgd'}]
    stages = [
        build_stage(cache=caches[24], distill=distill, data={'val': None}, optim={option: one}) for one in (False, True)
    ]
    before = state(stages[0])
    records = [run_stage(stage) for stage in stages]
    for one, other in zip(*records, strict=True):
        assert other['losses'] == pytest.approx(one['losses'], rel=1e-4)
    one, other = (moved(before, state(stage)) for stage in stages)
    assert one.norm() > 0
    # Adam makes whole steps of gradients that are all rounding.
    assert (one - other).norm() < 3e-3 * one.norm()
    weight: Tensor = stages[1].student.module.get_parameter('backbone.conv1.weight')
    assert weight.is_contiguous(memory_format=torch.channels_last) is (option == 'channels_last')


def test_evaluations_are_after_every_so_many_epochs_and_the_last(build_stage: BuildStage, run_stage: Any) -> None:
    records = run_stage(build_stage(optim={'epochs': 3}, evaluate={'every': 2}))
    assert [record['epoch'] for record in records if record['kind'] == 'evaluation'] == [2, 3]
