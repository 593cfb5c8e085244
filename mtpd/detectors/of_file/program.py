"""A user's own file, named `file.py:callable`, and what its callable returns."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mtpd.detectors.detector import Detector
from mtpd.errors import InputError


def call_file(path: Path, function: str, *arguments: Any, name: str, given: str, **options: Any) -> Any:
    """What `function` in the user's file returns; any failure in it is an InputError that says what it was `given`."""
    if not path.is_file():
        raise InputError(f'{name}: there is no file {path}')
    try:
        builder: Callable[..., Any] | None = getattr(_import_file(path), function, None)
    # It is the user's program: it can raise any error, or exit like a script that reads its arguments.
    except (Exception, SystemExit) as error:
        raise InputError(f'{name}: the file cannot be imported: {type(error).__name__}: {error}') from error
    if not callable(builder):
        raise InputError(f'{name}: the file does not define a callable {function!r}')
    try:
        return builder(*arguments, **options)
    except (Exception, SystemExit) as error:
        raise InputError(f'{name} failed with {given}: {type(error).__name__}: {error}') from error


def build_module(path: Path, function: str, *, checkpoint: Path | None, device: torch.device, seed: int = 0) -> Any:
    """The module with `features`, or the detector, that `function` returns, in eval mode, without gradients.

    What it draws at random it draws after `seed`.
    """
    name = f'teacher {path}:{function}'
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f'{name}: there is no checkpoint {checkpoint}')
    given = f'checkpoint {checkpoint}' if checkpoint else 'no checkpoint (give one with --checkpoint FILE)'
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        torch.manual_seed(seed)
        found = call_file(path, function, None if checkpoint is None else str(checkpoint), name=name, given=given)
    is_module = isinstance(found, nn.Module) and callable(getattr(found, 'features', None))
    if not is_module and not isinstance(found, Detector):
        raise InputError(
            f'{name} returned a {type(found).__name__}, expected a torch module with a method features(images), or a '
            'mtpd.detectors.Detector'
        )
    module = found.module if isinstance(found, Detector) else found
    module.to(device).eval().requires_grad_(False)
    return found


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f'mtpd_file_{path.stem}', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling look their module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
