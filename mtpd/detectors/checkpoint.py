"""Loading checkpoints so that nothing is left out or changed unnoticed.

Training programs put weights under many names, often next to averages. Anything beyond a plain state dict is logged;
if two networks are possible, both are named and none is used.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.checkpoint_file import read_checkpoint, require_intact
from mtpd.errors import InputError
from mtpd.system.text import listed

logger = logging.getLogger(__name__)

# What weights are kept under: as trained, and averaged over the training. Names of parameters begin with these, too,
# where the network was an attribute of the module that was saved.
TRAINED = (
    'state_dict', 'model', 'model_state_dict', 'model_state', 'module', 'net', 'network', 'detector', 'weights',
    'params',
)  # fmt: skip
AVERAGED = (
    'ema', 'ema_state_dict', 'ema_model', 'model_ema', 'state_dict_ema', 'params_ema', 'averaged_model', 'average',
    'swa_model',
)  # fmt: skip
# With two networks that are trained together, either may be meant.
ROLES = ('student', 'teacher')
# What training stores next to the weights.
OTHER = (
    'optimizer', 'optimizers', 'optim', 'optimizer_states', 'optimizer_state_dict', 'lr_scheduler', 'lr_schedulers',
    'scheduler', 'param_schedulers', 'scaler', 'amp', 'loss_scaler', 'meta', 'message_hub', 'hyper_parameters',
    'hparams', 'callbacks', 'loops', 'args', 'config', 'cfg', 'criterion', 'rng_state', 'rng_states', 'random_state',
    'metrics',
)  # fmt: skip
# What torch puts before names: DistributedDataParallel and averages before all, torch.compile at any depth.
MODULE, COMPILED = 'module.', '_orig_mod.'
# Counters that averages store next to the weights.
COUNTERS = ('steps', 'n_averaged', 'num_updates', 'decay')
# Averages that mmdet 2 kept among the weights.
EMA = 'ema_'
# What modules save besides tensors.
EXTRA = '_extra_state'
MAX_DEPTH = 5
WANTED = 'expected a checkpoint with a state_dict'

# Copies of a moving average, normalisation constants that mmdet reads from its config, and
# language models, which detectors are built without.
IGNORED = (EMA, 'data_preprocessor.', 'language_model.')
BATCH_COUNTER = 'num_batches_tracked'

# Kinds of tensors without plain values.
NOT_PLAIN: dict[str, Callable[[Tensor], bool]] = {
    'without values (on the meta device)': lambda one: one.is_meta,
    'in a quantised format': lambda one: one.is_quantized,
    'in a sparse format': lambda one: one.layout != torch.strided,
    'of complex numbers': lambda one: one.is_complex(),
}


def load_checkpoint(
    path: Path, *, allow_pickle: bool = False, network: nn.Module | None = None
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors of a checkpoint by name, on the CPU, and its `meta` entry, empty if it has none.

    Takes a bare state dict or one inside `state_dict`, `model` and the like, and drops prefixes such as `module.`, but
    changes no names that the `network` has. What it had to choose is logged; several networks, and tensors without
    plain values, are refused. For `allow_pickle` and the formats see `read_checkpoint`.
    """
    name = f'checkpoint {path}'
    content = read_checkpoint(path, allow_pickle=allow_pickle)
    require_intact(path)
    notes: list[str] = []
    place, found = _find_state(content, notes, name=name)
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    extra = [key for key in map(str, found) if key not in tensors and not key.endswith(EXTRA)]
    if extra:
        notes.append(f'ignored {len(extra)} entries that are not tensors ({listed(extra)})')
    if len(place) > 1 or (place and place[0] not in TRAINED[:3]):
        notes.append(f'loaded the weights under {".".join(place)}')
    own = () if network is None else network.state_dict().keys()
    tensors, prefixes = _without_wrappers(tensors, notes, name=name, own=own)
    averages = [key for key in tensors if key.startswith(EMA)]
    if averages and len(averages) == len(tensors):
        raise InputError(
            f'{name}: holds only averages under names that begin with {EMA} ({listed(averages)}); use a checkpoint '
            'with the weights under their own names'
        )
    if averages:
        notes.append(f'loaded the weights under their own names, not the {len(averages)} averages (named {EMA}...)')
    for kind, is_such in NOT_PLAIN.items():
        if wrong := [key for key, value in tensors.items() if is_such(value)]:
            raise InputError(
                f'{name}: holds {_some(wrong, f"tensors {kind}")}; save plain tensors of floating-point numbers'
            )
    for note in [*notes, *_oddities(tensors)]:
        logger.warning('note: %s: %s', name, note)
    state = OrderedDict(tensors)
    # PyTorch keeps versions of modules here, by name; modules convert older layouts by them.
    versions: Mapping[str, Any] = getattr(found, '_metadata', None) or {}
    vars(state)['_metadata'] = OrderedDict((_unwrapped(key, prefixes), value) for key, value in versions.items())
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return state, meta if isinstance(meta, Mapping) else {}


def require_kinds(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, name: str) -> None:
    """Refuses whole numbers (quantised weights) for floating-point ones of the network, `own`, or vice versa."""
    wrong = [
        f'{key} {_dtype(value)} for {_dtype(own[key])}'
        for key, value in state.items()
        if key in own and value.is_floating_point() != own[key].is_floating_point() and not key.endswith(BATCH_COUNTER)
    ]
    if wrong:
        raise InputError(f'{name}: {_some(wrong, "tensors of another number type")}; save them as floating point')


def load_into(model: nn.Module, path: Path, *, name: str, allow_pickle: bool = False) -> Mapping[str, Any]:
    """Loads all of a checkpoint into all of `model` and returns its `meta`; nothing may be missing or left over."""
    state, meta = load_checkpoint(path, allow_pickle=allow_pickle, network=model)
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
    missing = [
        key for key in keys.missing_keys if not key.endswith(BATCH_COUNTER) and own[key].data_ptr() not in loaded
    ]
    ignored = [key for key in keys.unexpected_keys if key.startswith(IGNORED) or key.endswith(BATCH_COUNTER)]
    unexpected = [key for key in keys.unexpected_keys if key not in ignored]
    pairs = (('are missing', missing), ('are unexpected', unexpected))
    problems = [_some(found, f'tensors {what}') for what, found in pairs if found]
    if problems:
        raise InputError(f'{name}: {"; ".join(problems)}; is it the checkpoint of this config?')
    logger.debug('%s: loaded %d tensors, ignored %s', name, len(own) - len(keys.missing_keys), ignored)
    return meta


def _find_state(content: Any, notes: list[str], *, name: str) -> tuple[tuple[str, ...], Mapping[Any, Any]]:
    """Where in a checkpoint the weights are: (keys on the way, state dict). Adds to `notes`."""
    place: tuple[str, ...] = ()
    while True:
        if isinstance(content, nn.Module):
            content = content.state_dict()
        if not isinstance(content, Mapping):
            raise InputError(f'{name}: holds no tensors by name but a {type(content).__name__}; {WANTED}')
        inner = dict(_inner(content))
        known = [key for key in inner if key in (*TRAINED, *AVERAGED, *ROLES)]
        if known:
            choice = _choice(known, place, notes, name=name)
        elif len(inner) > 1:
            raise InputError(
                f'{name}: has tensors under {len(inner)} names ({listed([_at(place, key) for key in inner])}), none of '
                'which is a known name of weights; save the state_dict alone, with torch.save'
            )
        elif inner:
            (choice,) = inner
        elif _is_state(content):
            return place, content
        else:
            raise InputError(f'{name}: {_empty(content)}; {WANTED}')
        if len(place) >= MAX_DEPTH:
            raise InputError(f'{name}: is nested deeper than {MAX_DEPTH} names; {WANTED}')
        place, content = (*place, choice), inner[choice]


def _inner(content: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The entries in which there are tensors by name."""
    for key, value in content.items():
        is_other = not isinstance(key, str) or key.lower() in OTHER or key.endswith(EXTRA)
        if not is_other and _holds_state(value, depth):
            yield key, value


def _holds_state(value: Any, depth: int) -> bool:
    if isinstance(value, nn.Module):
        return True
    if not isinstance(value, Mapping) or depth > MAX_DEPTH:
        return False
    return _is_state(value) or any(True for _ in _inner(value, depth + 1))


def _is_state(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def _choice(known: list[str], place: tuple[str, ...], notes: list[str], *, name: str) -> str:
    """Which of these entries is meant. Adds to `notes`."""
    trained = [key for key in known if key not in AVERAGED]
    candidates = trained or known
    if len(candidates) > 1:
        raise InputError(
            f'{name}: holds {len(candidates)} networks ({", ".join(_at(place, key) for key in candidates)}); save the '
            'required one alone, as a state_dict, with torch.save'
        )
    others = [_at(place, key) for key in known if key != candidates[0]]
    if not trained:
        notes.append(f'loaded the averaged weights {_at(place, candidates[0])}, there are no others')
    elif others:
        notes.append(f'loaded {_at(place, candidates[0])}, not the averaged weights {", ".join(others)}')
    return candidates[0]


def _without_wrappers(
    tensors: dict[str, Tensor], notes: list[str], *, name: str, own: Collection[str]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(tensors by their names in the network, the prefixes that were taken off). Adds to `notes`."""
    if any(COMPILED in key for key in tensors):
        notes.append(f'removed {COMPILED} of torch.compile from the names of tensors')
    state: dict[str, Tensor] = {}
    for key, value in tensors.items():
        short = key.replace(COMPILED, '')
        # Two names that become one stay two.
        state[key if short in state else short] = value
    prefixes: list[str] = []
    dropped: list[str] = []
    while True:
        counters = [key for key, value in state.items() if key in COUNTERS and value.numel() == 1]
        rest = [key for key in state if key not in counters]
        roots = {key.partition('.')[0] for key in rest if '.' in key}
        is_wrapped = bool(rest) and all('.' in key for key in rest) and roots <= {*TRAINED, *AVERAGED, *ROLES}
        if not is_wrapped or any(key in own for key in rest):
            if dropped:
                notes.append(f'ignored {len(dropped)} counters of an average ({listed(dropped)})')
            return state, tuple(prefixes)
        about_choice: list[str] = []
        prefix = _choice(sorted(roots), (), about_choice, name=f'{name}: judging by the names of its tensors') + '.'
        notes += about_choice
        if prefix != MODULE and not about_choice:
            notes.append(f'removed {prefix} from the names of all tensors')
        prefixes.append(prefix)
        dropped += counters
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _unwrapped(module: str, prefixes: tuple[str, ...]) -> str:
    """The name of a module without prefixes of wrappers."""
    module = f'{module}.'.replace(COMPILED, '')
    for prefix in prefixes:
        module = module.removeprefix(prefix)
    return module.removesuffix('.')


def _empty(content: Mapping[Any, Any]) -> str:
    arrays = [
        str(key) for key, value in content.items() if type(value).__module__ == 'numpy' and hasattr(value, 'shape')
    ]
    if arrays:
        return f'holds {len(arrays)} NumPy arrays ({listed(arrays)}), not tensors; convert them with torch.from_numpy'
    return f'holds no tensors by name{f", but {listed([*map(str, content)])}" if content else ": it is empty"}'


def _oddities(state: Mapping[str, Tensor]) -> list[str]:
    """Notes on unusual values."""
    numbers = {key: value for key, value in state.items() if value.is_floating_point()}
    others = Counter(_dtype(value) for value in numbers.values() if value.dtype != torch.float32)
    notes = [f'{count} tensors are {dtype} and are loaded as float32' for dtype, count in others.items()]
    # Formats of 8 bits cannot be asked.
    bad = [key for key, value in numbers.items() if not value.float().isfinite().all()]
    if bad:
        notes.append(f'{_some(bad, "tensors hold values that are not finite")}; its training may have diverged')
    return notes


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix('torch.')


def _at(place: tuple[str, ...], key: str) -> str:
    return '.'.join((*place, key))


def _some(items: Sequence[str], what: str) -> str:
    return f'{len(items)} {what} ({listed(items)})'
