"""Reading checkpoints without running what is in them, and loading them so that nothing is left out unnoticed."""

import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mtpd.errors import InputError

logger = logging.getLogger(__name__)

WRAPPERS = ('state_dict', 'model', 'model_state_dict')
# What DistributedDataParallel puts before every name.
MODULE = 'module.'
# Copies that a moving average keeps beside the weights, normalisation constants that mmdet reads from its config, and
# language models, which detectors are built without.
IGNORED = ('ema_', 'data_preprocessor.', 'language_model.')
# What PyTorch says when it refuses a file for what it would have to run.
MORE_THAN_TENSORS = re.compile('unsupported (global|class)|reduce', re.IGNORECASE)
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


def load_checkpoint(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU.

    Takes a bare state dict or one inside `state_dict` or `model`, and drops the prefix `module.`.

    Args:
        path: a file of `torch.save`, or of safetensors.
        allow_pickle: unpickle whatever the file holds. That can run any code: only for files that are trusted.

    Raises:
        InputError: there is no such file, it is damaged or no checkpoint, or it needs `allow_pickle`.
    """
    content = _read(path, allow_pickle)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f'{path}: holds no tensors by name, expected a checkpoint with a state_dict')
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    prefix = MODULE if all(name.startswith(MODULE) for name in tensors) else ''
    state = OrderedDict((name.removeprefix(prefix), value) for name, value in tensors.items())
    # Modules tell old layouts from new ones by the versions kept here.
    versions: Mapping[str, Any] = getattr(content, '_metadata', None) or {}
    vars(state)['_metadata'] = OrderedDict((name.removeprefix(prefix), value) for name, value in versions.items())
    return state


def checkpoint_meta(path: Path, *, allow_pickle: bool = False) -> Mapping[str, Any]:
    """What a checkpoint says of itself in `meta`, if anything. Arguments and errors are those of `load_checkpoint`."""
    content = _read(path, allow_pickle)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return meta if isinstance(meta, Mapping) else {}


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, name: str) -> LoadReport:
    """Loads all of `state` into all of `model`.

    Args:
        model: gets the weights.
        state: from `load_checkpoint`.
        name: what is loaded, for messages.

    Raises:
        InputError: a tensor is missing, left over, or has another shape.
    """
    own = model.state_dict()
    wrong = [
        f'{key} {tuple(value.shape)} for {tuple(own[key].shape)}'
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if wrong:
        raise InputError(f'{name}: {_some(wrong, "tensors of another shape")}; is it the checkpoint of this config?')
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
    problems = {'are missing': missing, 'are left over': unexpected}
    lines = [_some(found, f'tensors {what}') for what, found in problems.items() if found]
    if lines:
        raise InputError(f'{name}: {"; ".join(lines)}; is it the checkpoint of this config?')
    logger.debug('%s: loaded %d tensors, ignored %s', name, len(own), ignored)
    return LoadReport(num_loaded=len(own) - len(keys.missing_keys), ignored=tuple(ignored))


def _read(path: Path, allow_pickle: bool) -> Any:
    if not path.is_file():
        raise InputError(f'checkpoint {path}: there is no such file; check the path')
    damaged = f'checkpoint {path}: is damaged or no checkpoint; fetch or copy it again'
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with torch.serialization.safe_globals(list(_harmless_globals())):
            return torch.load(path, map_location='cpu', weights_only=not allow_pickle)
    except pickle.UnpicklingError as error:
        if not allow_pickle and MORE_THAN_TENSORS.search(str(error)):
            raise InputError(
                f'checkpoint {path}: holds more than tensors and plain values (training logs of mmengine, for one), '
                f'and reading that can run code; if you trust where it comes from, add --trust-checkpoint '
                '(a stage: `trust_checkpoint: true` for its teacher)'
            ) from error
        raise InputError(damaged) from error
    # A damaged file can fail anywhere in the readers.
    except Exception as error:
        raise InputError(damaged) from error


def _harmless_globals() -> Iterator[Any]:
    """Numbers of NumPy, which old training loops left in the meta data: plain values in all but name."""
    make_scalar = np.float64().__reduce__()[0]
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        yield make_scalar, f'{module}.scalar'
    yield np.dtype
    yield from (type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_))


def _some(items: list[str], what: str) -> str:
    shown = ', '.join(items[:NAMES_SHOWN])
    return f'{len(items)} {what} ({shown}{", ..." if len(items) > NAMES_SHOWN else ""})'
