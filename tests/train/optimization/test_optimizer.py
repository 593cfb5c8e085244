"""Learning rates at the steps that matter, and what the optimizer is given."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from mtpd.errors import InputError
from mtpd_train.optimization import build_optimizer, build_schedule, layer_factors
from mtpd_train.settings.stage_settings import OptimSettings

LR = 0.01


def schedule_of(
    optimizer: Optimizer, schedule: Any, *, epochs: int, steps_per_epoch: int, **settings: Any
) -> LRScheduler:
    optim = OptimSettings(lr=LR, schedule=schedule, epochs=epochs, **settings)
    return build_schedule(optimizer, optim, steps_per_epoch=steps_per_epoch)


def sgd() -> Optimizer:
    parameter = Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    return build_optimizer(nn.ParameterList([parameter]), nn.Module(), OptimSettings(lr=LR, epochs=1))


def step(optimizer: Optimizer, schedule: LRScheduler) -> float:
    """The learning rate of a step, which is then done."""
    lr = optimizer.param_groups[0]['lr']
    optimizer.step()
    schedule.step()
    assert isinstance(lr, float)
    return lr


def all_lrs(optimizer: Optimizer, schedule: LRScheduler, num_steps: int) -> list[float]:
    return [step(optimizer, schedule) for _ in range(num_steps)]


def test_mmdets_1x_recipe() -> None:
    optimizer = sgd()
    schedule = schedule_of(optimizer, 'multistep', epochs=12, steps_per_epoch=600, milestones=(8, 11))
    lrs = all_lrs(optimizer, schedule, 7200)
    # Linear from lr / 1000, 500 steps, as in mmdet's schedule_1x.
    assert lrs[:501] == pytest.approx([LR * (1e-3 + (1 - 1e-3) * i / 500) for i in range(501)])
    assert lrs[501:4800] == pytest.approx([LR] * 4299)
    assert lrs[4800:6600] == pytest.approx([LR / 10] * 1800)
    assert lrs[6600:] == pytest.approx([LR / 100] * 600)


def test_a_short_training_warms_up_for_a_tenth() -> None:
    optimizer = sgd()
    lrs = all_lrs(optimizer, schedule_of(optimizer, 'multistep', epochs=4, steps_per_epoch=10), 40)
    assert lrs[0] == pytest.approx(LR * 1e-3)
    assert lrs[4:] == pytest.approx([LR] * 36)


def test_cosine() -> None:
    optimizer = sgd()
    schedule = schedule_of(optimizer, 'cosine', epochs=2, steps_per_epoch=50, warmup_iters=10, warmup_ratio=0.1)
    lrs = all_lrs(optimizer, schedule, 100)
    want = [LR * (1 + math.cos(math.pi * i / 100)) / 2 * min(1, 0.1 + 0.9 * i / 10) for i in range(100)]
    assert lrs == pytest.approx(want)


def test_linear_with_a_floor() -> None:
    optimizer = sgd()
    schedule = schedule_of(
        optimizer, 'linear', epochs=2, steps_per_epoch=50, min_lr=LR / 5, warmup_iters=10, warmup_ratio=0.1
    )
    want = [LR * (0.2 + 0.8 * (1 - i / 100)) * min(1, 0.1 + 0.9 * i / 10) for i in range(100)]
    assert all_lrs(optimizer, schedule, 100) == pytest.approx(want)
    assert schedule.get_last_lr() == pytest.approx([LR / 5])


def test_cosine_with_a_floor_is_torchs() -> None:
    optimizer, reference = sgd(), sgd()
    schedule = schedule_of(optimizer, 'cosine', epochs=2, steps_per_epoch=50, min_lr=LR / 20, warmup_iters=0)
    want = CosineAnnealingLR(reference, T_max=100, eta_min=LR / 20)
    assert all_lrs(optimizer, schedule, 100) == pytest.approx(all_lrs(reference, want, 100))


def test_one_cycle() -> None:
    optimizer = sgd()
    schedule = schedule_of(optimizer, 'onecycle', epochs=2, steps_per_epoch=50, warmup_iters=20, warmup_ratio=0.1)
    lrs = all_lrs(optimizer, schedule, 100)
    rise = [0.1 + 0.9 * (1 - math.cos(math.pi * i / 20)) / 2 for i in range(20)]
    fall = [(1 + math.cos(math.pi * i / 79)) / 2 for i in range(80)]
    assert lrs == pytest.approx([LR * factor for factor in rise + fall], abs=LR * 2e-5)
    assert optimizer.param_groups[0]['momentum'] == 0.9


def test_one_cycle_by_default_peaks_at_30_percent() -> None:
    optimizer = sgd()
    lrs = all_lrs(optimizer, schedule_of(optimizer, 'onecycle', epochs=10, steps_per_epoch=10), 100)
    assert lrs[0] == pytest.approx(LR / 25)
    assert lrs.index(max(lrs)) == 29


@pytest.mark.parametrize('kind', ['multistep', 'cosine', 'linear', 'onecycle'])
@pytest.mark.parametrize('num_steps', [1, 2, 3, 10])
@pytest.mark.parametrize('warmup_iters', [None, 0])
def test_tiny_trainings_keep_a_positive_rate(kind: str, num_steps: int, warmup_iters: int | None) -> None:
    optimizer = sgd()
    schedule = schedule_of(optimizer, kind, epochs=1, steps_per_epoch=num_steps, warmup_iters=warmup_iters)
    assert all(0 < lr <= LR * (1 + 1e-12) for lr in all_lrs(optimizer, schedule, num_steps))


@pytest.mark.parametrize('kind', ['multistep', 'cosine', 'linear', 'onecycle'])
def test_resume_goes_on_exactly(kind: str) -> None:
    def build() -> tuple[Optimizer, LRScheduler]:
        optimizer = sgd()
        return optimizer, schedule_of(
            optimizer,
            kind,
            epochs=4,
            steps_per_epoch=5,
            milestones=(2,) if kind == 'multistep' else (),
            warmup_iters=6,
        )

    whole = all_lrs(*build(), 20)
    optimizer, schedule = build()
    first = all_lrs(optimizer, schedule, 5)
    resumed_optimizer, resumed_schedule = build()
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed_schedule.load_state_dict(schedule.state_dict())
    assert first + all_lrs(resumed_optimizer, resumed_schedule, 15) == whole


@pytest.mark.parametrize('warmup_iters', [9, 10, 500])
def test_a_warmup_longer_than_the_training(warmup_iters: int) -> None:
    with pytest.raises(InputError, match=f'warmup_iters is {warmup_iters}, but the training has only 10'):
        schedule_of(sgd(), 'multistep', epochs=2, steps_per_epoch=5, warmup_iters=warmup_iters)


def test_frozen_parameters_are_left_out() -> None:
    frozen, trained = Parameter(torch.ones(2), requires_grad=False), Parameter(torch.ones(2))
    optim = OptimSettings(type='adamw', lr=1e-3, momentum=0.8, weight_decay=0.05, epochs=1)
    optimizer = build_optimizer(nn.ParameterList([frozen, trained]), nn.Module(), optim)
    assert isinstance(optimizer, AdamW)
    (group,) = optimizer.param_groups
    assert [id(parameter) for parameter in group['params']] == [id(trained)]
    assert (group['lr'], group['betas'], group['weight_decay']) == (1e-3, (0.8, 0.999), 0.05)


def test_sgd_against_its_update_rule() -> None:
    parameter = Parameter(torch.tensor([2.0]))
    optimizer = build_optimizer(
        nn.ParameterList([parameter]), nn.Module(), OptimSettings(lr=0.1, momentum=0.5, weight_decay=0.01, epochs=1)
    )
    assert isinstance(optimizer, SGD)
    value, velocity = 2.0, 0.0
    for gradient in (1.0, -3.0, 0.5):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        velocity = 0.5 * velocity + gradient + 0.01 * value
        value -= 0.1 * velocity
    assert parameter.item() == pytest.approx(value, rel=1e-6)


class Network(nn.Module):
    """What parameter groups tell apart: a backbone, norms, biases, a parameter that two modules share."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        convolution = nn.Conv2d(4, 4, 1)
        self.neck = nn.Sequential(convolution, nn.GroupNorm(2, 4), nn.LayerNorm(4))
        self.bbox_head = nn.Conv2d(4, 4, 1)
        self.backbone_like = nn.Conv2d(4, 4, 1, bias=False)
        self.bbox_head.weight = convolution.weight


def groups_of(**settings: Any) -> dict[str, tuple[float, float]]:
    """Name of each parameter -> its learning rate and weight decay, by factors of the optimizer's."""
    model, distiller = Network(), nn.Conv2d(4, 4, 1)
    model.backbone[0].weight.requires_grad_(False)
    optim = OptimSettings(type='adamw', lr=LR, weight_decay=0.05, epochs=1, **settings)
    optimizer = build_optimizer(model, distiller, optim)
    names = {id(one): name for name, one in model.named_parameters()}
    names |= {id(one): f'distiller.{name}' for name, one in distiller.named_parameters()}
    found = [
        (names[id(one)], (round(group['lr'] / LR, 6), group['weight_decay'] / 0.05))
        for group in optimizer.param_groups
        for one in group['params']
    ]
    assert len(dict(found)) == len(found) == 13
    assert optimizer.param_groups[0]['lr'] == LR  # that which is logged
    return dict(found)


def test_one_group_by_default() -> None:
    """In the order of the modules: a run of an earlier version is resumed with it."""
    model, distiller = Network(), nn.Conv2d(4, 4, 1)
    (group,) = build_optimizer(model, distiller, OptimSettings(lr=LR, epochs=1)).param_groups
    assert [*map(id, group['params'])] == [*map(id, model.parameters()), *map(id, distiller.parameters())]


def test_parameter_groups() -> None:
    backbone = groups_of(backbone_lr=0.1)
    assert {name for name, group in backbone.items() if group == (0.1, 1.0)} == {
        'backbone.0.bias', 'backbone.1.weight', 'backbone.1.bias'
    }  # fmt: skip
    assert {group for name, group in backbone.items() if not name.startswith('backbone.')} == {(1.0, 1.0)}
    norms = {'backbone.1.weight', 'backbone.1.bias', 'neck.1.weight', 'neck.1.bias', 'neck.2.weight', 'neck.2.bias'}
    biases = {'backbone.0.bias', 'neck.0.bias', 'bbox_head.bias'}
    for settings, free in (
        ({'norm_decay': False}, norms),
        ({'bias_decay': False}, biases),
        ({'norm_decay': False, 'bias_decay': False}, norms | biases),
    ):
        assert {name for name, (_, decay) in groups_of(**settings).items() if decay == 0} == free
    both = groups_of(backbone_lr=0.1, norm_decay=False)
    assert both['backbone.1.weight'] == (0.1, 0.0)
    assert both['neck.1.weight'] == (1.0, 0.0)


class Transformer(nn.Module):
    """A plain one: embedding, three blocks, norm; and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.position = nn.Parameter(torch.zeros(4))
        self.backbone.embed = nn.Conv2d(3, 4, 2, 2)
        self.backbone.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 4) for _ in range(3))
        self.backbone.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def test_layers_of_a_transformer() -> None:
    """As BEiT counts them: layer i of N blocks has decay ** (N + 1 - i), heads and the last norm have 1."""
    model = Transformer()
    optim = OptimSettings(type='adamw', lr=LR, epochs=1, backbone_lr=0.5, layer_decay=0.8, norm_decay=False)
    groups = build_optimizer(model, nn.Module(), optim).param_groups
    names = {id(one): name for name, one in model.named_parameters()}
    found = {names[id(one)]: (group['lr'] / LR, group['weight_decay']) for group in groups for one in group['params']}
    assert found.keys() == dict(model.named_parameters()).keys()
    wanted = {
        'backbone.position': 4, 'backbone.embed.weight': 4, 'backbone.blocks.0.linear1.weight': 3,
        'backbone.blocks.0.norm1.weight': 3, 'backbone.blocks.2.linear2.weight': 1, 'backbone.norm.weight': 0,
    }  # fmt: skip
    for name, power in wanted.items():
        assert found[name][0] == pytest.approx(0.5 * 0.8**power), name
    assert found['head.weight'][0] == pytest.approx(1.0)
    assert found['backbone.blocks.0.norm1.weight'][1] == 0
    assert found['backbone.blocks.0.linear1.weight'][1] > 0
    assert groups[0]['lr'] == LR


def test_layers_between_blocks() -> None:
    """What lies between two blocks, as the transitions of HRNet, belongs to the first of them."""
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.first = nn.ModuleList([nn.TransformerEncoderLayer(4, 1, 4)])
    model.backbone.between = nn.Conv2d(4, 4, 1)
    model.backbone.second = nn.ModuleList([nn.TransformerEncoderLayer(4, 1, 4)])
    model.backbone.norm = nn.LayerNorm(4)
    factors = layer_factors(model, 'backbone', decay=0.5)
    assert factors[model.backbone.between] == factors[model.backbone.first[0]] == 0.25
    assert factors[model.backbone.second[0]] == 0.5
    assert factors[model.backbone.norm] == 1


def test_layers_of_a_backbone_without_any() -> None:
    with pytest.raises(InputError, match=r'optim\.layer_decay is 0\.8, but .* has no sequence of blocks'):
        build_optimizer(Network(), nn.Module(), OptimSettings(lr=LR, epochs=1, layer_decay=0.8))


@pytest.mark.parametrize('kind', ['multistep', 'cosine', 'linear', 'onecycle'])
def test_the_backbone_keeps_its_fraction(kind: str) -> None:
    optim = OptimSettings(lr=LR, epochs=2, schedule=kind, backbone_lr=0.25)  # type: ignore[arg-type]
    optimizer = build_optimizer(Network(), nn.Module(), optim)
    schedule, lrs = build_schedule(optimizer, optim, steps_per_epoch=20), []
    for _ in range(40):
        lrs.append(optimizer.param_groups[0]['lr'])
        assert optimizer.param_groups[1]['lr'] == pytest.approx(0.25 * lrs[-1])
        optimizer.step()
        schedule.step()
    assert max(lrs) > 2 * min(lrs)
