"""A prediction is tried before the first epoch: it finds out who cannot predict, and changes nothing."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.errors import InputError, UnavailableError
from mtpd_train.planning import try_predictions
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.stage import Stage, build_stages
from mtpd_train.student import named_failures

CPU = torch.device('cpu')
WriteStage = Callable[..., Path]


@pytest.fixture
def retinanet() -> Any:
    """The class of the tiny student."""
    prepare()
    from mmdet.models.detectors import RetinaNet

    return RetinaNet


@pytest.mark.parametrize('options', [(), ('--dry-run', '--trial-steps', 0)])
def test_a_student_that_cannot_predict_is_told_before_it_is_trained(
    options: tuple[Any, ...],
    retinanet: Any,
    write_stage: WriteStage,
    train_error: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError('no_such_level')

    monkeypatch.setattr(retinanet, 'predict', fail, raising=False)
    stage = write_stage(tmp_path / 'stage.yaml')
    line = train_error(stage, '--out', tmp_path / 'run', *options)
    assert 'retinanet_tiny.py cannot predict: KeyError' in line
    assert 'no_such_level' in line
    assert not (tmp_path / 'run').exists()


def test_losses_that_fail_name_student_error_and_images(
    retinanet: Any,
    write_stage: WriteStage,
    train_error: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AttributeError('no_such_head')

    monkeypatch.setattr(retinanet, 'loss', fail, raising=False)
    stage = write_stage(tmp_path / 'stage.yaml', data={'val': None, 'batch_size': 2})
    line = train_error(stage, '--out', tmp_path / 'run', '--dry-run')
    assert 'retinanet_tiny.py cannot compute its losses: AttributeError: no_such_head (on images ' in line


@pytest.mark.parametrize('val', [None, 'val2017'])
def test_nothing_is_changed(
    val: str | None, retinanet: Any, build_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the student draws from every generator; and its batch is one of an evaluation."""
    found, predict = [], retinanet.predict

    def draw(self: Any, images: torch.Tensor, samples: Any, **options: Any) -> Any:
        found.append((len(images), self.training, torch.is_grad_enabled()))
        random.random(), np.random.rand(), torch.rand(3)
        return predict(self, images, samples, **options)

    monkeypatch.setattr(retinanet, 'predict', draw, raising=False)
    stage = build_stage(data={'val': val}, model={'test_cfg.score_thr': 0.0})
    model = stage.student.module.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    try_predictions([stage], CPU)
    assert found == [(2, False, False)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))


def test_each_student_is_tried_once(write_stage: WriteStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write_stage(tmp_path / 'one.yaml')
    other = write_stage(tmp_path / 'other.yaml', model={'test_cfg.score_thr': 0.3})
    stages = build_stages(load_stages([one, one, other]))
    tried: list[Any] = []
    monkeypatch.setattr('mtpd_train.planning.detect', lambda student, *_, **__: tried.append(student))
    try_predictions(stages, CPU)
    assert tried == [stages[0].student, stages[2].student]


def test_failures_of_other_kinds_keep_their_kind() -> None:
    for error, wanted, text in [
        (ImportError('Please run "pip install sklearn"'), UnavailableError, 'pip install scikit-learn'),
        (InputError('image 3 is damaged'), InputError, '^image 3 is damaged$'),
        (RuntimeError('DataLoader worker (pid 1) is killed'), RuntimeError, '^DataLoader worker'),
        (torch.OutOfMemoryError('too much'), torch.OutOfMemoryError, '^too much$'),
        (ValueError(''), InputError, r'cannot predict: ValueError: no message \(on images 1, 2\)'),
    ]:
        with pytest.raises(wanted, match=text), named_failures('x', 'predict', image_ids=[1, 2]):
            raise error
