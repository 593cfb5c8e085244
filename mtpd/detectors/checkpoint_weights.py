"""Where in a checkpoint the weights are: training programs put them under many names, and averages beside them.

Notes report anything beyond a plain state dict; if two networks are possible, both are named and none is used.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtpd.errors import InputError

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
# Of two networks that train together either may be meant.
ROLES = ('student', 'teacher')
# What training keeps beside the weights.
OTHER = (
    'optimizer', 'optimizers', 'optim', 'optimizer_states', 'optimizer_state_dict', 'lr_scheduler', 'lr_schedulers',
    'scheduler', 'param_schedulers', 'scaler', 'amp', 'loss_scaler', 'meta', 'message_hub', 'hyper_parameters',
    'hparams', 'callbacks', 'loops', 'args', 'config', 'cfg', 'criterion', 'rng_state', 'rng_states', 'random_state',
    'metrics',
)  # fmt: skip
# What torch puts before names: DistributedDataParallel and averages before all, torch.compile at any depth.
MODULE, COMPILED = 'module.', '_orig_mod.'
# Counters that averages keep beside the weights.
COUNTERS = ('steps', 'n_averaged', 'num_updates', 'decay')
# Averages that mmdet 2 kept among the weights.
EMA = 'ema_'
# What modules save besides tensors.
EXTRA = '_extra_state'
MAX_DEPTH = 5
WANTED = 'expected a checkpoint with a state_dict'


@dataclass(frozen=True)
class Weights:
    """The weights that were found.

    Attributes:
        state: tensors by their names in the network.
        versions: of the modules, by the names of these; PyTorch's `_metadata`.
        notes: what the user should know of the choice.
    """

    state: dict[str, Tensor]
    versions: dict[str, Any]
    notes: tuple[str, ...]


def find_weights(content: Any, *, name: str, own: Collection[str] = ()) -> Weights:
    """The weights in what a checkpoint file holds.

    Args:
        content: of the file.
        name: of the file, for messages.
        own: names in the network that gets the weights, which may begin as those of wrappers do; none: not known.

    Raises:
        InputError: there are none, or several networks.
    """
    place, found, notes = _state_in(content, (), name=name)
    entries = {str(key): value for key, value in found.items()}
    state = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
    extra = [key for key, value in entries.items() if not isinstance(value, Tensor) and not key.endswith(EXTRA)]
    if extra:
        notes.append(f'ignored {len(extra)} entries that are not tensors ({_first(extra)})')
    if len(place) > 1 or (place and place[0] not in TRAINED[:3]):
        notes.append(f'loaded the weights under {".".join(place)}')
    versions: Mapping[str, Any] = getattr(found, '_metadata', None) or {}
    state, renaming, dropped = _without_wrappers(state, notes, name=name, own=own)
    if dropped:
        notes.append(f'ignored {len(dropped)} counters of an average ({_first(dropped)})')
    averages = [key for key in state if key.startswith(EMA)]
    if averages and len(averages) == len(state):
        raise InputError(
            f'{name}: holds only averages under names that begin with {EMA} ({_first(averages)}); use a checkpoint '
            'with the weights under their own names'
        )
    if averages:
        notes.append(f'loaded the weights under their own names, not the {len(averages)} averages (named {EMA}...)')
    return Weights(state, {_renamed(key, renaming): value for key, value in versions.items()}, tuple(notes))


def _state_in(
    content: Any, place: tuple[str, ...], *, name: str
) -> tuple[tuple[str, ...], Mapping[Any, Any], list[str]]:
    """(keys on the way, state dict, notes)."""
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise InputError(f'{name}: holds no tensors by name but a {type(content).__name__}; {WANTED}')
    inner = dict(_inner(content))
    known = [key for key in inner if key in (*TRAINED, *AVERAGED, *ROLES)]
    choice, notes = _choice(known, place, name=name) if known else _only(list(inner), place, name=name)
    if choice is None:
        if not _is_state(content):
            raise InputError(f'{name}: {_empty(content)}; {WANTED}')
        return place, content, notes
    if len(place) >= MAX_DEPTH:
        raise InputError(f'{name}: is nested deeper than {MAX_DEPTH} names; {WANTED}')
    end, state, more = _state_in(inner[choice], (*place, choice), name=name)
    return end, state, notes + more


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


def _choice(known: list[str], place: tuple[str, ...], *, name: str) -> tuple[str, list[str]]:
    """Which of these entries is meant."""
    trained = [key for key in known if key not in AVERAGED]
    candidates = trained or known
    if len(candidates) > 1:
        raise InputError(
            f'{name}: holds {len(candidates)} networks ({", ".join(_at(place, key) for key in candidates)}); save the '
            'required one alone, as a state_dict, with torch.save'
        )
    others = [_at(place, key) for key in known if key != candidates[0]]
    chosen = _at(place, candidates[0])
    if not trained:
        return candidates[0], [f'loaded the averaged weights {chosen}, there are no others']
    return candidates[0], [f'loaded {chosen}, not the averaged weights {", ".join(others)}'] if others else []


def _only(keys: list[str], place: tuple[str, ...], *, name: str) -> tuple[str | None, list[str]]:
    """The one entry that holds weights under a name that is not known; None where there is none."""
    if not keys:
        return None, []
    if len(keys) > 1:
        raise InputError(
            f'{name}: has tensors under {len(keys)} names ({", ".join(_at(place, key) for key in keys[:3])}'
            f'{", ..." if len(keys) > 3 else ""}), none of which is a known name of weights; save the '
            'state_dict alone, '
            'with torch.save'
        )
    return keys[0], []


def _without_wrappers(
    state: dict[str, Tensor], notes: list[str], *, name: str, own: Collection[str]
) -> tuple[dict[str, Tensor], tuple[str, ...], list[str]]:
    """(tensors by their names in the network, the prefixes that were taken off, counters that were left out)."""
    prefixes: list[str] = []
    dropped: list[str] = []
    if any(COMPILED in key for key in state):
        notes.append(f'removed {COMPILED} of torch.compile from the names of tensors')
    state = _unique((key.replace(COMPILED, ''), value, key) for key, value in state.items())
    while True:
        counters = [key for key, value in state.items() if key in COUNTERS and value.numel() == 1]
        rest = [key for key in state if key not in counters]
        roots = {key.partition('.')[0] for key in rest if '.' in key}
        is_wrapped = bool(rest) and all('.' in key for key in rest) and roots <= {*TRAINED, *AVERAGED, *ROLES}
        if not is_wrapped or any(key in own for key in rest):
            return state, tuple(prefixes), dropped
        chosen, more = _choice(sorted(roots), (), name=f'{name}: judging by the names of its tensors')
        notes += more
        prefix = f'{chosen}.'
        if prefix != MODULE and not more:
            notes.append(f'removed {prefix} from the names of all tensors')
        prefixes.append(prefix)
        dropped += counters
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _unique(entries: Iterable[tuple[str, Tensor, str]]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, value, original in entries:
        # Two names that become one stay two.
        state[original if key in state else key] = value
    return state


def _renamed(key: str, prefixes: tuple[str, ...]) -> str:
    key = f'{key}.'.replace(COMPILED, '')
    for prefix in prefixes:
        key = key.removeprefix(prefix)
    return key.removesuffix('.')


def _empty(content: Mapping[Any, Any]) -> str:
    arrays = [
        str(key) for key, value in content.items() if type(value).__module__ == 'numpy' and hasattr(value, 'shape')
    ]
    if arrays:
        return f'holds {len(arrays)} NumPy arrays ({_first(arrays)}), not tensors; convert them with torch.from_numpy'
    keys = [str(key) for key in content]
    return f'holds no tensors by name, but {_first(keys)}' if keys else 'holds no tensors by name: it is empty'


def _at(place: tuple[str, ...], key: str) -> str:
    return '.'.join((*place, key))


def _first(items: list[str]) -> str:
    more = ', ...' if len(items) > 3 else ''
    return f'{", ".join(item[:60] for item in items[:3])}{more}'
