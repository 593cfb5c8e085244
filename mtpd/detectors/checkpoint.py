"""Loading checkpoints so that nothing is left out or changed unnoticed."""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.checkpoint_format import require_intact
from mtpd.detectors.checkpoint_reading import read_checkpoint
from mtpd.detectors.checkpoint_weights import find_weights
from mtpd.errors import InputError

logger = logging.getLogger(__name__)

# Copies that a moving average keeps beside the weights, normalisation constants that mmdet reads from its config, and
# language models, which detectors are built without.
IGNORED = ('ema_', 'data_preprocessor.', 'language_model.')
COUNTER = 'num_batches_tracked'
NAMES_SHOWN = 3


@dataclass(frozen=True)
class LoadReport:
    """What `load_into` did.

    Attributes:
        num_loaded: tensors of the model that were set.
        ignored: names in the checkpoint that are known not to matter.
    """

    num_loaded: int
    ignored: tuple[str, ...]


def load_checkpoint(path: Path, *, allow_pickle: bool = False, network: nn.Module | None = None) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Takes a bare state dict or one inside `state_dict`, `model` and the like, and drops prefixes such as `module.`; see
    `mtpd.detectors.checkpoint_weights`. What it had to choose is logged.

    Args:
        path: a file of `torch.save`, or of safetensors.
        allow_pickle: unpickle arbitrary content. This can run any code: only for trusted files.
        network: what the weights are for, where that is known: names that it has are not changed.

    Raises:
        InputError: there is no such file, it is damaged or not a checkpoint, it needs `allow_pickle`, or it holds
            several networks or tensors without plain values.
        UnavailableError: it needs a package that is not installed.
    """
    name = f'checkpoint {path}'
    content = read_checkpoint(path, allow_pickle=allow_pickle)
    require_intact(path)
    found = find_weights(content, name=name, own=() if network is None else network.state_dict().keys())
    _require_plain(found.state, name=name)
    for note in [*found.notes, *_oddities(found.state)]:
        logger.warning('note: %s: %s', name, note)
    state = OrderedDict(found.state)
    # Modules tell old layouts from new ones by the versions kept here.
    vars(state)['_metadata'] = OrderedDict(found.versions)
    return state


def checkpoint_meta(path: Path, *, allow_pickle: bool = False) -> Mapping[str, Any]:
    """The `meta` entry of a checkpoint, if any. Arguments and errors are those of `load_checkpoint`."""
    content = read_checkpoint(path, allow_pickle=allow_pickle)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def require_kinds(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, name: str) -> None:
    """Refuses tensors whose numbers would be cut when they are copied, as those of a quantised network.

    Args:
        state: from `load_checkpoint`.
        own: the tensors of the network that gets them.
        name: what is loaded, for messages.

    Raises:
        InputError: whole numbers for floating-point ones, or the other way round.
    """
    wrong = [
        f'{key} {_dtype(value)} for {_dtype(own[key])}'
        for key, value in state.items()
        if key in own and value.is_floating_point() != own[key].is_floating_point() and not key.endswith(COUNTER)
    ]
    if wrong:
        raise InputError(f'{name}: {_some(wrong, "tensors of another number type")}; save them as floating point')


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, name: str) -> LoadReport:
    """Loads all of `state` into all of `model`.

    Args:
        model: gets the weights.
        state: from `load_checkpoint`.
        name: what is loaded, for messages.

    Raises:
        InputError: a tensor is missing, left over, or has another shape or kind of number.
    """
    own = model.state_dict()
    wrong = [
        f'{key} {tuple(value.shape)} for {tuple(own[key].shape)}'
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if wrong:
        raise InputError(f'{name}: {_some(wrong, "tensors of another shape")}; is it the checkpoint of this config?')
    require_kinds(state, own, name=name)
    try:
        keys = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # Shapes of tensors that the model renames while it loads.
        raise InputError(f'{name}: does not fit the model: {" ".join(str(error).split())[:300]}') from error
    # A tensor may have several names in a model, and a file only one of them.
    loaded = {own[key].data_ptr() for key in state if key in own}
    missing = [key for key in keys.missing_keys if not key.endswith(COUNTER) and own[key].data_ptr() not in loaded]
    ignored = [key for key in keys.unexpected_keys if key.startswith(IGNORED) or key.endswith(COUNTER)]
    unexpected = [key for key in keys.unexpected_keys if key not in ignored]
    problems = {'are missing': missing, 'are unexpected': unexpected}
    lines = [_some(found, f'tensors {what}') for what, found in problems.items() if found]
    if lines:
        raise InputError(f'{name}: {"; ".join(lines)}; is it the checkpoint of this config?')
    logger.debug('%s: loaded %d tensors, ignored %s', name, len(own), ignored)
    return LoadReport(num_loaded=len(own) - len(keys.missing_keys), ignored=tuple(ignored))


def _require_plain(state: Mapping[str, Tensor], *, name: str) -> None:
    """Refuses tensors that have no values of their own, or ones in a form of their own."""
    kinds: dict[str, Callable[[Tensor], bool]] = {
        'without values (on the meta device)': lambda one: one.is_meta,
        'in a quantised format': lambda one: one.is_quantized,
        'in a sparse format': lambda one: one.layout != torch.strided,
        'of complex numbers': lambda one: one.is_complex(),
    }
    for kind, is_such in kinds.items():
        found = [key for key, value in state.items() if is_such(value)]
        if found:
            raise InputError(
                f'{name}: holds {_some(found, f"tensors {kind}")}; save plain tensors of floating-point numbers'
            )


def _oddities(state: Mapping[str, Tensor]) -> list[str]:
    """What the user should know of the numbers."""
    numbers = [value for value in state.values() if value.is_floating_point()]
    others = Counter(_dtype(value) for value in numbers if value.dtype != torch.float32)
    notes = [f'{count} tensors are {dtype} and are loaded as float32' for dtype, count in others.items()]
    # Formats of 8 bits cannot be asked.
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if bad:
        notes.append(f'{_some(bad, "tensors hold values that are not finite")}; its training may have diverged')
    return notes


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix('torch.')


def _some(items: list[str], what: str) -> str:
    shown = ', '.join(items[:NAMES_SHOWN])
    return f'{len(items)} {what} ({shown}{", ..." if len(items) > NAMES_SHOWN else ""})'
