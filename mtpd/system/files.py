"""Files that are written whole or not at all, their hashes and free space; JSON values, spelt and compared."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mtpd.errors import UnavailableError

TEMPORARY = '.tmp-'


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether it is a URL and not a path, also one that has become a path and so lost a slash."""
    return '://' in os.fspath(path) or re.match(r'[A-Za-z][A-Za-z0-9+.-]+:/', os.fspath(path)) is not None


def fsync_directory(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, *, owner: str = '', flush: bool = True) -> None:
    """Writes a temporary file beside `path` and renames it into place.

    Any number of processes, on any machines, may write the same path concurrently: the last one wins. `owner` is part
    of the temporary file's name, for the clean-up after a kill. The file survives a power cut only with `flush`. After
    an OSError the temporary file is gone and `path` is as it was.
    """
    with _temporary(path, content, owner=owner, flush=flush) as temporary:
        temporary.replace(path)
    if flush:
        fsync_directory(path.parent)


def write_output(path: Path, content: bytes, *, option: str = '') -> None:
    """Writes a file that the user asked for by `option`, like `write_atomically`; raises what `unwritable` says."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise unwritable(path, error, option=option) from error


def unwritable(path: Path, error: OSError, *, option: str = '') -> UnavailableError:
    """What a user reads about a file that cannot be written."""
    name = f'{option} {path}' if option else str(path)
    return UnavailableError(f'{name}: cannot be written ({error.strerror}); choose another path')


def write_exclusively(path: Path, content: bytes, *, owner: str = '') -> None:
    """Like `write_atomically`, but when `path` exists already, or another process is first, what is there stays."""
    with _temporary(path, content, owner=owner, flush=True) as temporary, suppress(FileExistsError):
        os.link(temporary, path)
    fsync_directory(path.parent)


@contextmanager
def _temporary(path: Path, content: bytes, *, owner: str, flush: bool) -> Iterator[Path]:
    """A file beside `path` that is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process ids are not unique: several machines may share a file system.
    temporary = path.with_name(f'{TEMPORARY}{owner}-{secrets.token_hex(6)}-{path.name}')
    try:
        with temporary.open('wb') as file:
            file.write(content)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def free_bytes(path: Path) -> int:
    """Free space of the file system that `path` is, or would be, on."""
    return shutil.disk_usage(_existing(path)).free


def require_writable(out: Path) -> None:
    """Refuses a place where no folder `out` can be made or written into."""
    place = _existing(out)
    if not os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        is_readonly = os.statvfs(place).f_flag & os.ST_RDONLY
        reason = 'the file system is read-only' if is_readonly else 'no permission to write here'
        raise UnavailableError(f'{out}: {reason}; choose another --out')


def _existing(path: Path) -> Path:
    """The path, or the first of the folders above it that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def canonical_json(value: Any) -> bytes:
    """One spelling for one value (sorted keys, no spaces, no NaN), so that equal values hash equally."""
    return json.dumps(value, sort_keys=True, separators=(',', ':'), allow_nan=False).encode()


def differences(found: Any, wanted: Any, *, prefix: str = '') -> list[tuple[str, Any, Any]]:
    """(dotted field, found, wanted) for every leaf that differs; a field that one side lacks counts as None there."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        rows = []
        for key in sorted(found.keys() | wanted.keys()):
            rows += differences(found.get(key), wanted.get(key), prefix=f'{prefix}.{key}' if prefix else key)
        return rows
    return [] if found == wanted else [(prefix, found, wanted)]
