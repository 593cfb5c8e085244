"""A file of weights: its format, found by its content, and what it holds, read without running code in it.

Names and suffixes do not count. Most files that cannot be read are intact files of something else, so what they are is
named. Only what the user trusts is unpickled.
"""

import pickle
import re
import tarfile
import warnings
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

from mtpd.errors import InputError, UnavailableError
from mtpd.system.text import listed

# `torch` is what `torch.save` writes, in its zip format and the one before; `torch-tar` is the oldest one.
Format = Literal['torch', 'torch-tar', 'safetensors']

HEAD_BYTES = 1024
PIECE = 1 << 20  # bytes
MAX_SHOWN = 40  # characters of a text
MAX_MESSAGE = 300  # characters of another program's message
# The number that PyTorch before 1.6 pickled first, as pickle writes it in protocol 2 and later, and in 0 and 1.
LEGACY_MAGIC = (b'\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19', b'L119547037146038801333356L')
MAX_SAFETENSORS_HEADER = 10**8  # the format's own limit

FETCH = 'fetch or copy it again'
CONVERT = 'convert its weights, and save the tensors by name with torch.save or safetensors'
UNPACK = 'unpack it and give the weights file in it'
GIVE = 'give a weights file'

COMPRESSED = {b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'\xfd7zXZ\x00': 'xz', b'\x28\xb5\x2f\xfd': 'zstd'}
# (offset, bytes there, what it is, what to do).
SIGNATURES = (
    (0, b'\x89HDF\r\n\x1a\n', 'an HDF5 file, as Keras writes them', CONVERT),
    (0, b'\x93NUMPY', 'a NumPy array (.npy)', CONVERT),
    (0, b'GGUF', 'a GGUF file', CONVERT),
    (4, b'TFL3', 'a TensorFlow Lite model', CONVERT),
    (0, b'\x08\x01\x12', 'a TensorFlow SavedModel', CONVERT),
    (0, b'\x00\x00\x00\x00\x02\x00\x00\x00', 'a Darknet weights file', CONVERT),
    *((0, magic, f'compressed by {program}', UNPACK) for magic, program in COMPRESSED.items()),
    (0, b'7z\xbc\xaf\x27\x1c', 'a 7z archive', UNPACK),
    (0, b'Rar!\x1a\x07', 'a RAR archive', UNPACK),
    (0, b'\x89PNG\r\n', 'a PNG image', GIVE),
    (0, b'\xff\xd8\xff', 'a JPEG image', GIVE),
    (0, b'%PDF-', 'a PDF document', GIVE),
)
# An ONNX model begins with its version of the format, from 3 on, and one of these fields.
ONNX_VERSIONS, ONNX_FIELDS = range(2, 32), b'\x12\x1a\x22\x2a\x32\x3a\x42'
TENSORFLOW_INDEX = b'\x57\xfb\x80\x8b\x24\x75\x47\xdb'  # the last bytes of a checkpoint's .index
# Of pickles in protocol 0 and 1; later ones state their protocol.
OLD_PICKLES = (b'(dp', b'(lp', b'}q\x00', b']q\x00', b'ccollections\n', b'ccopy_reg\n')

# PyTorch's messages when it refuses a file that would run code.
MORE_THAN_TENSORS = re.compile('unsupported (global|class)|reduce', re.IGNORECASE)
NAMED_GLOBAL = re.compile(r'GLOBAL ([\w.]+)')


def read_checkpoint(path: Path, *, allow_pickle: bool) -> Any:
    """What a file of `torch.save` or safetensors holds, on the CPU; an InputError names what other files are.

    `allow_pickle` unpickles arbitrary content. This can run any code: only for trusted files.
    """
    kind = _format(path)
    damaged = f'checkpoint {path}: is damaged; {FETCH}'
    with warnings.catch_warnings():
        # Users cannot act on PyTorch's warnings about old formats.
        warnings.simplefilter('ignore')
        try:
            if kind == 'safetensors':
                return load_file(path)
            if kind == 'torch':
                with torch.serialization.safe_globals(_harmless_globals()):
                    return torch.load(path, map_location='cpu', weights_only=True)
            refusal = 'PyTorch before 0.2 wrote it as a tar archive'
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


def require_intact(path: Path) -> None:
    """Checks the checksums of a zip file of `torch.save`, which `torch.load` does not look at; others have none."""
    if not zipfile.is_zipfile(path):
        return
    damaged = []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            try:
                with archive.open(name) as record:
                    while record.read(PIECE):
                        pass
            # A changed header can name any encoding, method and size.
            except Exception:
                damaged.append(name)
    # All are wrong where `torch.serialization.set_crc32_options` has turned them off.
    if 0 < len(damaged) < len(names):
        raise InputError(f'checkpoint {path}: is damaged: the checksum of {_members(damaged)} is wrong; {FETCH}')


def _format(path: Path) -> Format:
    """How to read a file of weights."""
    if path.is_dir():
        raise _refusal(path, _folder(path))
    if not path.exists():
        raise _refusal(path, 'there is no such file; check the path')
    if not path.is_file():
        raise _refusal(path, f'is not a regular file; {GIVE}')
    try:
        with path.open('rb') as file:
            head = file.read(HEAD_BYTES)
            num_bytes = file.seek(0, 2)
            file.seek(max(0, num_bytes - len(TENSORFLOW_INDEX)))
            tail = file.read()
    except OSError as error:
        raise _refusal(path, f'cannot be read: {error.strerror}; check the file') from error
    if head.startswith(b'PK'):
        return _zip_format(path)
    if any(magic in head[:32] for magic in LEGACY_MAGIC):
        return 'torch'
    # A safetensors file starts with the length of its JSON header.
    if head[8:9] == b'{' and 2 <= int.from_bytes(head[:8], 'little') <= MAX_SAFETENSORS_HEADER:
        return 'safetensors'
    # Zeros are the end of a tar archive, and what a download that was cut off leaves in a file of full size.
    if head.strip(b'\0') and tarfile.is_tarfile(path) and not head.startswith(tuple(COMPRESSED)):
        return _tar_format(path)
    raise _refusal(path, _foreign(head, tail, num_bytes))


def _refusal(path: Path, what: str) -> InputError:
    return InputError(f'checkpoint {path}: {what}')


def _zip_format(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # A damaged directory can hold any names, sizes and places.
    except Exception as error:
        raise _refusal(path, f'is damaged or truncated: a zip file without its end; {FETCH}') from error
    bare = {name.rpartition('/')[2] for name in names}
    if 'constants.pkl' in bare or any('/code/' in name for name in names):
        what, step = 'a TorchScript archive', 'save the state_dict of torch.jit.load(FILE) with torch.save'
    elif 'data.pkl' in bare:
        return 'torch'
    elif bare & {'archive_format', 'serialized_exported_program.json'}:
        what, step = 'a program of torch.export', 'save the state_dict of torch.export.load(FILE) with torch.save'
    elif names and all(name.endswith('.npy') for name in names):
        what, step = 'a NumPy archive (.npz)', CONVERT
    elif 'model.weights.h5' in bare:
        what, step = 'a Keras model', CONVERT
    else:
        what, step = f'a zip archive of files ({_members(names)})', UNPACK
    raise _refusal(path, _other(what, step))


def _tar_format(path: Path) -> Format:
    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except Exception as error:
        raise _refusal(path, f'is damaged or truncated: a tar archive; {FETCH}') from error
    if {'pickle', 'storages', 'tensors'} <= set(names):
        return 'torch-tar'
    raise _refusal(path, f'is a tar archive of files ({_members(names)}); {UNPACK}')


def _other(what: str, step: str) -> str:
    return f'is {what}, not a file of torch.save or safetensors; {step}'


def _foreign(head: bytes, tail: bytes, num_bytes: int) -> str:
    """What a file is that is neither an archive nor weights."""
    if not num_bytes:
        return f'is empty (0 bytes); {FETCH}'
    if not head.strip(b'\0'):
        return f'begins with {len(head)} zero bytes, like an interrupted download; {FETCH}'
    for offset, magic, what, step in SIGNATURES:
        if head[offset:].startswith(magic):
            return _other(what, step)
    if tail == TENSORFLOW_INDEX:
        return _other('part of a TensorFlow checkpoint', CONVERT)
    if len(head) > 2 and head[0] == 8 and head[1] in ONNX_VERSIONS and head[2] in ONNX_FIELDS:
        return _other('an ONNX model', CONVERT)
    if (len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5) or head.startswith(OLD_PICKLES):
        return (
            'is a Python pickle of another framework, such as Detectron2 or PaddlePaddle, and not of torch.save; if '
            f'you trust it, unpickle it, {CONVERT}'
        )
    text = head.removeprefix(b'\xef\xbb\xbf').decode('utf-8', errors='ignore')
    is_text = len(text.encode()) >= len(head) - 6 and all(one.isprintable() or one.isspace() for one in text)
    if not is_text or not text.strip():
        return (
            f'is not a file of torch.save or safetensors: it begins with the bytes {head[:8].hex(" ")}; if it was one, '
            f'{FETCH}, and if another program wrote it, {CONVERT}'
        )
    text = text.strip()
    start = text.lower()
    if start.startswith('version https://git-lfs'):
        return 'is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository'
    if start.startswith(('<!doctype html', '<html', '<head', '<?xml')):
        return (
            'is a web page or XML document, such as the reply of a server that requires a login or lacks the file; '
            'fetch the file itself, for example in a browser'
        )
    if start.startswith(('{', '[')):
        return 'is a JSON file, not weights; give the weights file'
    return f'is a text file that begins with {text.splitlines()[0][:MAX_SHOWN]!r}, not weights; give the weights file'


def _folder(path: Path) -> str:
    names = sorted(one.name for one in path.iterdir())
    if '.metadata' in names:
        return (
            'is a folder of a distributed checkpoint; convert it to one file with '
            '`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`'
        )
    if 'saved_model.pb' in names:
        return f'is a folder of a TensorFlow SavedModel; {CONVERT}'
    return f'is a folder ({_members(names)}); give the weights file in it'


def _members(names: Sequence[str]) -> str:
    return listed(names, length=MAX_SHOWN) or 'empty'


def _harmless_globals() -> list[Any]:
    """Numbers of NumPy, which old training loops left in the meta data: plain values in all but name."""
    make_scalar = np.float64().__reduce__()[0]
    modules = ('numpy._core.multiarray', 'numpy.core.multiarray')
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    return [
        *((make_scalar, f'{module}.scalar') for module in modules), np.dtype, *(type(np.dtype(kind)) for kind in kinds)
    ]  # fmt: skip


def _what_it_holds(refusal: str) -> str:
    """What a file holds in addition to tensors, from PyTorch's error message."""
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


def _unpickled(path: Path, *, damaged: str) -> Any:
    """The content of a trusted file of `torch.save`."""
    states = 'save only the state_dict with torch.save, where the file can be read'
    try:
        return torch.load(path, map_location='cpu', weights_only=False)
    except ModuleNotFoundError as error:
        module = str(error.name)
        package = module.partition('.')[0]
        if package == module or find_spec(package) is None:
            raise UnavailableError(
                f'checkpoint {path}: needs the package {package}, which is not installed; install it, or {states}'
            ) from error
        what = f'needs the module {module}, which the installed package {package} does not have'
        raise _refusal(path, f'{what}; install the version that wrote the file, or {states}') from error
    except (AttributeError, ImportError) as error:
        found = re.search(r"attribute '([\w.]+)' on <module '([\w.]+)'", str(error))
        what = f'{found[1]} of the module {found[2]}, which does not exist' if found else _short(error)
        step = f'install the version of the package that wrote the file, or {states}'
        raise _refusal(path, f'needs {what}; {step}') from error
    except MemoryError as error:
        raise UnavailableError(f'checkpoint {path}: needs more memory than available; free some') from error
    # Objects of other programs can fail in any way.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError | EOFError) or 'PytorchStreamReader' in str(error):
            raise InputError(damaged) from error
        raise _refusal(path, f'cannot be unpickled: {_short(error)}; {states}') from error


def _short(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:MAX_MESSAGE]
