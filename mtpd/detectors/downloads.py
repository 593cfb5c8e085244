"""Downloads of weights: a file is whole or absent."""

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from filelock import FileLock

from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import sha256_file

logger = logging.getLogger(__name__)

BACKBONE_OFFLINE = 'set init.backbone to a local file, or to none to start without pretrained weights'
TIMEOUT = 30.0  # seconds without a byte
PIECE = 1 << 20  # bytes
REPORTS = 10  # lines of progress for one file
# Names of published weights end in the first hex digits of their sha256.
HASH_IN_NAME = re.compile(r'-([0-9a-f]{8,64})\.\w+$')


def weights_folder() -> Path:
    """Where PyTorch keeps downloaded weights."""
    return Path(torch.hub.get_dir()) / 'checkpoints'


def download(url: str, folder: Path, *, offline: str) -> Path:
    """The file at an http(s) `url`, kept in `folder` under its own name; fetched unless it is there.

    A hash in its name is checked, of a new file (UnavailableError) and of one that is there (InputError).
    """
    path = folder / Path(unquote(urlsplit(url).path)).name
    in_name = HASH_IN_NAME.search(path.name)
    expected = in_name[1] if in_name else ''
    # A file gets its name when it is whole, so only fetching needs the lock.
    if path.is_file():
        if not (actual := sha256_file(path)).startswith(expected):
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
            received = reported = 0
            while piece := response.read(PIECE):
                digest.update(piece)
                file.write(piece)
                received += len(piece)
                share = REPORTS * received // total if total else 0
                if share > reported:
                    reported = share
                    logger.info('%d of %d MB', received // 10**6, total // 10**6)
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
