"""The moving average of weights: by a float64 loop, saved, evaluated, passed on, resumed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mtpd.detectors.of_mmdet.detector import MmdetDetector
from mtpd.detectors.preprocessing import Normalisation, Preprocessing
from mtpd.geometry import Geometry
from mtpd_train.optimization import Optimization, update_average
from mtpd_train.settings.stage_settings import OptimSettings
from mtpd_train.training.step import add_gradient


def test_against_a_float64_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model[0].weight.requires_grad_(False)
    average = AveragedModel(model, use_buffers=True)
    wanted: dict[str, Tensor] = {}
    for step in range(1, 301):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        model(torch.randn(2, 3, 6, 6))  # moves the batch statistics
        update_average(average, model, decay=0.95, step=step)
        decay = min(0.95, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if step == 1 or not value.is_floating_point():
                wanted[name] = value.double()
            else:
                wanted[name] = decay * wanted[name] + (1 - decay) * value.double()
    found = average.module.state_dict()
    assert found['1.num_batches_tracked'] == 300
    for name, value in wanted.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-5, atol=1e-6)
        assert name == '1.num_batches_tracked' or not torch.equal(found[name], model.state_dict()[name])


def test_steps_count_from_one() -> None:
    model = nn.Linear(1, 1, bias=False)
    optim = OptimSettings(lr=0.1, epochs=1, ema=0.95, warmup_iters=0)
    detector = MmdetDetector('it', model, Preprocessing(Geometry((1, 1)), Normalisation()))
    optimization = Optimization(detector, nn.Module(), optim, steps_per_epoch=3, device=torch.device('cpu'))
    torch.autograd.backward(model.weight.sum())
    optimization.step(1)
    first = model.weight.item()
    torch.autograd.backward(model.weight.sum())
    optimization.step(2)
    assert optimization.student is not model
    average = optimization.student.state_dict()['weight'].item()
    assert average == pytest.approx(3 / 12 * first + 9 / 12 * model.weight.item(), rel=1e-6)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope='module')
def averaged(
    tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Any], write_stage: Callable[..., Path]
) -> dict[str, Path]:
    """The same stage with and without an average, and the former followed by another; its training states are kept."""
    folder = tmp_path_factory.mktemp('averaged')
    stage = write_stage(folder / 'stage.yaml', data={'batch_size': 12}, optim={'epochs': 2, 'ema': 0.9})
    other = write_stage(folder / 'other.yaml', data={'batch_size': 24, 'val': None}, optim={'lr': 1e-12, 'ema': 0.5})
    train(stage, '--out', folder / 'plain', '--set', 'optim.ema=null')
    train(stage, other, '--out', folder / 'averaged')
    return {name: folder / name for name in ('plain', 'averaged', 'stage.yaml')}


def test_what_is_saved_is_the_average(averaged: dict[str, Path], records: Any) -> None:
    """Training itself is the same, so only what is evaluated and saved differs; the next stage starts from that."""
    plain, average = averaged['plain'], averaged['averaged']
    losses = [[one['losses'] for one in records(run, 'train') if one['stage'] == 1] for run in (plain, average)]
    assert losses[0] == losses[1]
    metrics = [[one['metrics'] for one in records(run, 'evaluation')] for run in (plain, average)]
    assert metrics[0] != metrics[1]
    states = [load(run / 'stage1' / 'student.pth')['state_dict'] for run in (plain, average)]
    assert not equal(*states)
    assert equal(load(average / 'stage1' / 'epoch_2.pth')['state_dict'], states[1])
    # One step at a vanishing rate, whose average is that step's student.
    name = 'bbox_head.retina_cls.weight'
    torch.testing.assert_close(load(average / 'student.pth')['state_dict'][name], states[1][name], rtol=0, atol=1e-9)


def test_a_resumed_run_has_the_same_average(
    averaged: dict[str, Path], train: Any, train_error: Any, tmp_path: Path
) -> None:
    """Stopped in the middle of the second epoch."""
    calls: list[int] = []

    def pressed(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return add_gradient(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mtpd_train.training.loop.add_gradient', pressed)
        assert 'stage 1, step 3' in train_error(averaged['stage.yaml'], '--out', tmp_path, code=130)
    train(averaged['stage.yaml'], '--out', tmp_path, '--resume')
    for name in ('student.pth', 'epoch_1.pth', 'best.pth'):
        found, wanted = (load(run / 'stage1' / name)['state_dict'] for run in (tmp_path, averaged['averaged']))
        assert equal(found, wanted)
