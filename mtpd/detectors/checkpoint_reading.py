"""The content of a file of weights, read without running what is in it unless the user trusts it."""

import pickle
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from mtpd.detectors.checkpoint_format import FETCH, checkpoint_format
from mtpd.errors import InputError, UnavailableError

# PyTorch's messages when it refuses a file that would run code.
MORE_THAN_TENSORS = re.compile('unsupported (global|class)|reduce', re.IGNORECASE)
NAMED_GLOBAL = re.compile(r'GLOBAL ([\w.]+)')
MAX_SHOWN = 300  # characters of what another program says


def read_checkpoint(path: Path, *, allow_pickle: bool) -> Any:
    """What a file of `torch.save` or safetensors holds, on the CPU.

    Args:
        path: the file.
        allow_pickle: unpickle arbitrary content. This can run any code: only for trusted files.

    Raises:
        InputError: there is no such file, it is something else or damaged, or it needs `allow_pickle`.
        UnavailableError: it needs a package that is not installed.
    """
    kind = checkpoint_format(path)
    damaged = f'checkpoint {path}: is damaged; {FETCH}'
    with warnings.catch_warnings():
        # Users cannot act on PyTorch's warnings about old formats.
        warnings.simplefilter('ignore')
        try:
            if kind == 'safetensors':
                return load_file(path)
            if kind == 'torch':
                with torch.serialization.safe_globals(list(_harmless_globals())):
                    return torch.load(path, map_location='cpu', weights_only=True)
            refusal: str | None = 'PyTorch before 0.2 wrote it as a tar archive'
        except pickle.UnpicklingError as error:
            if not MORE_THAN_TENSORS.search(str(error)):
                raise InputError(damaged) from error
            refusal = _what_it_holds(str(error))
        # A damaged file can fail anywhere in the readers.
        except Exception as error:
            raise InputError(damaged) from error
        if not allow_pickle:
            raise InputError(
                f'checkpoint {path}: {refusal}, and loading it can run code; if you trust its source, add '
                '--trust-checkpoint (a stage: `trust_checkpoint: true` for its teacher)'
            )
        return _unpickled(path, damaged=damaged)


def _unpickled(path: Path, *, damaged: str) -> Any:
    """The content of a trusted file of `torch.save`."""
    name = f'checkpoint {path}'
    states = 'or save only the state_dict with torch.save, where the file can be read'
    try:
        return torch.load(path, map_location='cpu', weights_only=False)
    except ModuleNotFoundError as error:
        module = str(error.name)
        package = module.partition('.')[0]
        if package != module and find_spec(package) is not None:
            raise InputError(
                f'{name}: needs the module {module}, which the installed package {package} does not have; install '
                f'the version that wrote the file, {states}'
            ) from error
        raise UnavailableError(
            f'{name}: needs the package {package}, which is not installed; install it, {states}'
        ) from error
    except (AttributeError, ImportError) as error:
        found = re.search(r"attribute '([\w.]+)' on <module '([\w.]+)'", str(error))
        what = f'{found[1]} of the module {found[2]}, which does not exist' if found else _short(error)
        raise InputError(
            f'{name}: needs {what}; install the version of the package that wrote the file, {states}'
        ) from error
    except MemoryError as error:
        raise UnavailableError(f'{name}: needs more memory than available; free some') from error
    except (pickle.UnpicklingError, EOFError) as error:
        raise InputError(damaged) from error
    # Objects of other programs can fail in any way.
    except Exception as error:
        if 'PytorchStreamReader' in str(error):
            raise InputError(damaged) from error
        raise InputError(f'{name}: cannot be unpickled: {_short(error)}; {states.removeprefix("or ")}') from error


def _what_it_holds(refusal: str) -> str:
    """What a file holds beside tensors, from PyTorch's refusal."""
    found = NAMED_GLOBAL.search(refusal)
    if not found:
        return 'holds more than tensors and plain values'
    package = found[1].partition('.')[0]
    try:
        is_there = find_spec(package) is not None
    except (ImportError, ValueError):  # of `__main__`
        is_there = True
    absent = '' if is_there else f' (the package {package} is not installed)'
    return f'holds more than tensors and plain values: {found[1]}{absent}'


def _short(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:MAX_SHOWN]


def _harmless_globals() -> Iterator[Any]:
    """Numbers of NumPy, which old training loops left in the meta data: plain values in all but name."""
    make_scalar = np.float64().__reduce__()[0]
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        yield make_scalar, f'{module}.scalar'
    yield np.dtype
    yield from (type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_))
