"""Fetching files over HTTP so that a file is there whole and right, or not at all."""

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import sha256_file

logger = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a byte
PIECE = 1 << 20  # bytes
REPORTS = 10  # lines of progress for one file


def download(url: str, folder: Path, *, offline: str) -> Path:
    """The file at `url`, kept in `folder` under its own name; fetched unless it is there.

    File names of published weights end in the first hex digits of their sha256 (`...-5486e051.pth`), which are checked
    for a new file and for one that is there. Names without it cannot be checked; they are logged.

    Args:
        url: http or https address.
        folder: where to keep it; made when missing.
        offline: what else the user can do, for the error message.

    Raises:
        InputError: the file in `folder` is not what its name says.
        UnavailableError: the address cannot be reached, or gives something else.
    """
    path = folder / Path(unquote(urlsplit(url).path)).name
    expected = _hash_in_name(path.name)
    # A file gets its name when it is whole, so only fetching needs the lock.
    if path.is_file():
        actual = sha256_file(path)
        if not actual.startswith(expected):
            raise InputError(f'{path}: its sha256 starts with {actual[:8]}, expected {expected}; delete it')
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two programs that start together must not fetch one file twice.
        with FileLock(folder / f'.{path.name}.lock'):
            if not path.is_file():
                _fetch(url, path, expected, offline)
    # URLError, HTTPError and timeouts are OSErrors; so are a full disk and a folder that cannot be written.
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # It holds the connection.
        raise UnavailableError(f'cannot fetch {url} to {path}: {error}; {offline}') from error
    return path


def _fetch(url: str, path: Path, expected: str, offline: str) -> None:
    if not expected:
        logger.warning('%s: its name has no hash, so it cannot be verified', url)
    temporary = path.with_name(f'.tmp-{os.getpid()}-{path.name}')
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, temporary.open('wb') as file:
            if response.headers.get_content_type() == 'text/html':
                raise UnavailableError(f'{url}: returned a web page, not a weights file; {offline}')
            total = int(response.headers.get('Content-Length') or 0)
            logger.info('fetching %s (%.0f MB) to %s', url, total / 1e6, path)
            for piece in _pieces(response, total):
                digest.update(piece)
                file.write(piece)
            received = file.tell()
            file.flush()
            os.fsync(file.fileno())
        if received < total:
            raise UnavailableError(f'{url}: connection lost after {received} of {total} bytes; try again, or {offline}')
        if not digest.hexdigest().startswith(expected):
            raise UnavailableError(
                f'{url}: the sha256 of the download starts with {digest.hexdigest()[:8]}, expected {expected}; '
                f'try again, or {offline}'
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pieces(response: IO[bytes], total: int) -> Iterator[bytes]:
    received = 0
    reported = 0
    while piece := response.read(PIECE):
        yield piece
        received += len(piece)
        share = REPORTS * received // total if total else 0
        if share > reported:
            reported = share
            logger.info('%d of %d MB', received // 10**6, total // 10**6)


def _hash_in_name(name: str) -> str:
    """The hash at the end of a file's name; empty when there is none."""
    match = re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    return match.group(1) if match else ''
