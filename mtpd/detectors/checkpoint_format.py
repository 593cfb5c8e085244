"""The format of a weights file, by its content: names and suffixes do not count, and most wrong files are intact."""

import tarfile
import zipfile
from pathlib import Path
from typing import Literal

from mtpd.errors import InputError

Format = Literal['torch', 'torch-tar', 'safetensors']

HEAD_BYTES = 1024
PIECE = 1 << 20  # bytes
MAX_NAMES = 3
MAX_SHOWN = 40  # characters of a text
# The number that PyTorch before 1.6 pickled first, as pickle writes it in protocol 2 and later, and in 0 and 1.
LEGACY_MAGIC = (b'\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19', b'L119547037146038801333356L')
MAX_SAFETENSORS_HEADER = 10**8  # the format's own limit

FETCH = 'fetch or copy it again'
CONVERT = 'convert its weights, and save the tensors by name with torch.save or safetensors'
UNPACK = 'unpack it and give the weights file in it'

# (offset, bytes there, what it is, what to do).
SIGNATURES = (
    (0, b'\x89HDF\r\n\x1a\n', 'an HDF5 file, as Keras writes them', CONVERT),
    (0, b'\x93NUMPY', 'a NumPy array (.npy)', CONVERT),
    (0, b'GGUF', 'a GGUF file', CONVERT),
    (4, b'TFL3', 'a TensorFlow Lite model', CONVERT),
    (0, b'\x08\x01\x12', 'a TensorFlow SavedModel', CONVERT),
    (0, b'\x00\x00\x00\x00\x02\x00\x00\x00', 'a Darknet weights file', CONVERT),
    (0, b'\x1f\x8b', 'compressed by gzip', UNPACK),
    (0, b'BZh', 'compressed by bzip2', UNPACK),
    (0, b'\xfd7zXZ\x00', 'compressed by xz', UNPACK),
    (0, b'\x28\xb5\x2f\xfd', 'compressed by zstd', UNPACK),
    (0, b'7z\xbc\xaf\x27\x1c', 'a 7z archive', UNPACK),
    (0, b'Rar!\x1a\x07', 'a RAR archive', UNPACK),
    (0, b'\x89PNG\r\n', 'a PNG image', 'give a weights file'),
    (0, b'\xff\xd8\xff', 'a JPEG image', 'give a weights file'),
    (0, b'%PDF-', 'a PDF document', 'give a weights file'),
)
# An ONNX model begins with its version of the format, from 3 on, and one of these fields.
ONNX_VERSIONS, ONNX_FIELDS = range(2, 32), b'\x12\x1a\x22\x2a\x32\x3a\x42'
TENSORFLOW_INDEX = b'\x57\xfb\x80\x8b\x24\x75\x47\xdb'  # the last bytes of a checkpoint's .index
# Of pickles in protocol 0 and 1; later ones state their protocol.
OLD_PICKLES = (b'(dp', b'(lp', b'}q\x00', b']q\x00', b'ccollections\n', b'ccopy_reg\n')


def checkpoint_format(path: Path) -> Format:
    """How to read a file of weights.

    Args:
        path: the file.

    Returns:
        `torch` for what `torch.save` writes, in its zip format and the one before; `torch-tar` for the oldest one.

    Raises:
        InputError: there is no such file, or it is something else; the message names what it is and the next step.
    """
    if path.is_dir():
        raise InputError(f'checkpoint {path}: {_folder(path)}')
    if not path.exists():
        raise InputError(f'checkpoint {path}: there is no such file; check the path')
    if not path.is_file():
        raise InputError(f'checkpoint {path}: is not a regular file; give a weights file')
    try:
        with path.open('rb') as file:
            head = file.read(HEAD_BYTES)
            num_bytes = file.seek(0, 2)
            file.seek(max(0, num_bytes - len(TENSORFLOW_INDEX)))
            tail = file.read()
    except OSError as error:
        raise InputError(f'checkpoint {path}: cannot be read: {error.strerror}; check the file') from error
    if head.startswith(b'PK'):
        return _zip_format(path)
    if any(magic in head[:32] for magic in LEGACY_MAGIC):
        return 'torch'
    if _is_safetensors(head):
        return 'safetensors'
    # Zeros are the end of a tar archive, and what a download that was cut off leaves in a file of full size.
    if head.strip(b'\0') and tarfile.is_tarfile(path) and not head.startswith((b'\x1f\x8b', b'BZh', b'\xfd7zXZ\x00')):
        return _tar_format(path)
    raise InputError(f'checkpoint {path}: {_foreign(head, tail, num_bytes)}')


def require_intact(path: Path) -> None:
    """Checks the checksums of a zip file of `torch.save`, which `torch.load` does not look at; others have none.

    Raises:
        InputError: a record differs from what was written.
    """
    if not zipfile.is_zipfile(path):
        return
    intact, damaged = [], []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            try:
                with archive.open(name) as record:
                    while record.read(PIECE):
                        pass
                intact.append(name)
            # As in `_zip_format`: a changed header can name any encoding, method and size.
            except Exception:
                damaged.append(name)
    # All are wrong where `torch.serialization.set_crc32_options` has turned them off.
    if damaged and intact:
        raise InputError(f'checkpoint {path}: is damaged: the checksum of {_listed(damaged)} is wrong; {FETCH}')


def _zip_format(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    # What a damaged directory makes of names, sizes and places has no end.
    except Exception as error:
        raise InputError(f'checkpoint {path}: is damaged or truncated: a zip file without its end; {FETCH}') from error
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
        what, step = f'a zip archive of files ({_listed(names)})', UNPACK
    raise InputError(f'checkpoint {path}: is {what}, not a file of torch.save or safetensors; {step}')


def _tar_format(path: Path) -> Format:
    try:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    except Exception as error:
        raise InputError(f'checkpoint {path}: is damaged or truncated: a tar archive; {FETCH}') from error
    if {'pickle', 'storages', 'tensors'} <= set(names):
        return 'torch-tar'
    raise InputError(f'checkpoint {path}: is a tar archive of files ({_listed(names)}); {UNPACK}')


def _is_safetensors(head: bytes) -> bool:
    """A safetensors file is a JSON header behind its length."""
    length = int.from_bytes(head[:8], 'little')
    return head[8:9] == b'{' and 2 <= length <= MAX_SAFETENSORS_HEADER


def _foreign(head: bytes, tail: bytes, num_bytes: int) -> str:
    if not num_bytes:
        return f'is empty (0 bytes); {FETCH}'
    if not head.strip(b'\0'):
        return f'begins with {len(head)} zero bytes, like an interrupted download; {FETCH}'
    for offset, magic, what, step in SIGNATURES:
        if head[offset:].startswith(magic):
            return f'is {what}, not a file of torch.save or safetensors; {step}'
    if tail == TENSORFLOW_INDEX:
        return f'is part of a TensorFlow checkpoint, not a file of torch.save or safetensors; {CONVERT}'
    if len(head) > 2 and head[0] == 8 and head[1] in ONNX_VERSIONS and head[2] in ONNX_FIELDS:
        return f'is an ONNX model, not a file of torch.save or safetensors; {CONVERT}'
    if (len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5) or head.startswith(OLD_PICKLES):
        return (
            'is a Python pickle of another framework, such as Detectron2 or PaddlePaddle, and not of torch.save; if '
            f'you trust it, unpickle it, {CONVERT}'
        )
    text = _text(head)
    if text is None:
        return (
            f'is not a file of torch.save or safetensors: it begins with the bytes {head[:8].hex(" ")}; if it was one, '
            f'{FETCH}, and if another program wrote it, {CONVERT}'
        )
    return _text_file(text)


def _text_file(text: str) -> str:
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


def _text(head: bytes) -> str | None:
    """The head of a text file; None where it is none."""
    text = head.removeprefix(b'\xef\xbb\xbf').decode('utf-8', errors='ignore')
    is_text = len(text.encode()) >= len(head) - 6 and all(one.isprintable() or one.isspace() for one in text)
    return (text.strip() or None) if is_text else None


def _folder(path: Path) -> str:
    names = sorted(one.name for one in path.iterdir())
    if '.metadata' in names:
        return (
            'is a folder of a distributed checkpoint; convert it to one file with '
            '`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE`'
        )
    if 'saved_model.pb' in names:
        return f'is a folder of a TensorFlow SavedModel; {CONVERT}'
    return f'is a folder ({_listed(names)}); give the weights file in it'


def _listed(names: list[str]) -> str:
    """The first names of a list, without what could control a terminal."""
    shown = [''.join(one if one.isprintable() else '?' for one in name[:MAX_SHOWN]) for name in names[:MAX_NAMES]]
    return ', '.join([*shown, '...'] if len(names) > MAX_NAMES else shown) or 'empty'
