"""Weights and training state on disk: written whole or not at all, and read without unpickling anything."""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mtpd.errors import InputError, MtpdError
from mtpd.files import write_atomically


@dataclass(frozen=True)
class Trainables:
    """Everything whose state a resumed stage needs."""

    model: nn.Module
    distiller: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    scaler: GradScaler


def save_student(path: Path, model: nn.Module, *, classes: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """Writes `{'state_dict', 'meta'}` as mmdet reads it: the student's own keys, no adapter, plain values only."""
    state: dict[str, Tensor] = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    _save(path, {'state_dict': state, 'meta': {'dataset_meta': {'classes': classes}, **meta}})


def save_progress(path: Path, trainables: Trainables, *, epoch: int, step: int) -> None:
    """Writes the state after `epoch` finished epochs and `step` optimizer steps."""
    states = {name: part.state_dict() for name, part in vars(trainables).items()}
    _save(path, {'epoch': epoch, 'step': step, **states})


def load_progress(path: Path, trainables: Trainables) -> tuple[int, int]:
    """Restores what `save_progress` wrote; returns the finished epochs and steps.

    Raises:
        InputError: the file is damaged or belongs to another stage.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        for name, part in vars(trainables).items():
            part.load_state_dict(content[name])
        return content['epoch'], content['step']
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f'{path}: cannot be resumed from ({error}); delete it to start this stage anew') from error


def require_finite(model: nn.Module, *, stage: int, step: int) -> None:
    """Checks what is about to be saved: the last gradient of an epoch spoils weights, but no loss that was seen.

    Raises:
        MtpdError: a parameter or buffer is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise MtpdError(
                f'stage {stage}: {name} of the student is not finite after step {step}; '
                'lower optim.lr or the weight of a loss, or clip gradients with optim.grad_clip'
            )


def _save(path: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())
