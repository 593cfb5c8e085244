"""Students on disk: written whole or not at all."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.errors import UnavailableError
from mtpd.system.files import write_atomically
from mtpd_train.records.divergence import DivergedError


def save_student(path: Path, model: nn.Module, *, classes: tuple[str, ...], meta: Mapping[str, Any]) -> None:
    """Writes `{'state_dict', 'meta'}` as mmdet reads it: the student's own keys, no adapter, plain values only.

    Raises:
        UnavailableError: as `write_checkpoint`.
    """
    state: dict[str, Tensor] = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    write_checkpoint(path, {'state_dict': state, 'meta': {'dataset_meta': {'classes': classes}, **meta}})


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes what `torch.load(weights_only=True)` reads; until it is all there, `path` is what it was.

    Raises:
        UnavailableError: the disk is full or cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Writes a file of a run; until it is all there, `path` is what it was.

    Raises:
        UnavailableError: the disk is full or cannot be written.
    """
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UnavailableError(
            f'{path}: cannot be saved ({error.strerror}, {len(content) / 1e6:.1f} MB); earlier saves are '
            'intact: free some space, then run the same command with --resume'
        ) from error


def require_finite(model: nn.Module, *, stage: int, step: int) -> None:
    """Checks what is about to be saved: a gradient can spoil weights after the last loss that was seen.

    Raises:
        DivergedError: a parameter or buffer is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DivergedError(f'stage {stage}: {name} of the student is not finite after step {step}')
