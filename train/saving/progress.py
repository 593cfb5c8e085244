"""The training state within a stage, for an exact resume.

Random draws are not part of it: they depend only on the position in the run (see `mtpd_train.seeding`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mtpd.detectors.checkpoint_file import require_intact
from mtpd.errors import InputError
from mtpd_train.saving.checkpoint import write_checkpoint
from mtpd_train.saving.trainables import Trainables


@dataclass(frozen=True)
class Position:
    """A place between two optimizer steps of a stage.

    Attributes:
        epoch: finished epochs, their evaluations done.
        step: optimizer steps done; at the end of an epoch that is not finished only its evaluation is left.
    """

    epoch: int = 0
    step: int = 0


def save_progress(path: Path, trainables: Trainables, position: Position) -> None:
    """Writes the state at `position`.

    Its key `model` holds the student's weights, so that the file is a checkpoint that `init.checkpoint` takes.

    Raises:
        UnavailableError: as `write_checkpoint`.
    """
    states = {name: part.state_dict() for name, part in trainables.with_state().items()}
    write_checkpoint(path, {**asdict(position), **states})


def read_progress(path: Path) -> Mapping[str, Any]:
    """What `save_progress` wrote.

    Raises:
        InputError: the file is damaged.
    """
    try:
        require_intact(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    # A damaged file can fail anywhere in the readers.
    except Exception as error:
        raise _unusable(path, error) from error
    if not isinstance(content, dict):
        raise _unusable(path, TypeError(f'holds a {type(content).__name__}'))
    return content


def restore(content: Mapping[str, Any], trainables: Trainables, *, path: Path) -> Position:
    """Restores a state and returns its position.

    Args:
        content: from `read_progress`.
        trainables: get their states.
        path: the file, for messages.

    Raises:
        InputError: the state belongs to another stage.
    """
    try:
        for name, part in trainables.with_state().items():
            part.load_state_dict(content[name])
        return Position(epoch=content['epoch'], step=content['step'])
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> InputError:
    return InputError(f'{path}: cannot be resumed from ({error}); delete it to restart this stage')
