"""Caches in an object store or on a web server, by byte ranges or through a mirror.

What arrives is trusted no more than a local file: manifest, tables and rows are checked by the same hashes. Requests
that fail for a reason that may pass are made again.
"""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from mtpd.cache.format.manifest import MANIFEST_FILE, FileRecord, Manifest, parse_manifest
from mtpd.cache.format.strict_json import MAX_BYTES, parse_json, short
from mtpd.cache.reading.mirror import Mirror
from mtpd.errors import CacheDamagedError, CacheIncompleteError, InputError, UnavailableError

Result = TypeVar('Result')

NUM_ATTEMPTS = 6
FIRST_WAIT = 0.2  # seconds; each wait is twice as long as the one before
TIMEOUT = timedelta(seconds=60)
# Whole tables, of which rows are read one at a time.
MAX_KEPT_BYTES, MAX_KEPT_FILE = 2**28, 2**21
SCHEMES = ('s3', 'gs', 'az', 'abfs', 'http', 'https')


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether it is a URL and not a path."""
    return '://' in os.fspath(path)


class RemoteFolder:
    """A folder by its URL. Safe to use from several threads."""

    def __init__(self, url: str, *, mirror: Mirror | None = None) -> None:
        self.name = url.rstrip('/')
        self._store = _store(self.name)
        self._mirror = mirror
        self._records: dict[str, FileRecord] = {}
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._num_kept = 0
        self._lock = threading.Lock()

    def read_manifest(self) -> Manifest:
        def read() -> bytes:
            response = self._store.get(MANIFEST_FILE)
            if response.meta['size'] > MAX_BYTES:
                size = response.meta['size']
                raise CacheDamagedError(f'{self.name}/{MANIFEST_FILE}: has {size} bytes; copy the cache again')
            return bytes(response.bytes())

        try:
            content = self._attempted(MANIFEST_FILE, read)
        except FileNotFoundError:
            raise CacheIncompleteError(
                f'{self.name}: no cache here ({MANIFEST_FILE} is missing); check the URL'
            ) from None
        manifest = parse_manifest(parse_json(content, name=f'{self.name}/{MANIFEST_FILE}'), name=self.name)
        self._records = manifest.files
        return manifest

    def size(self, file: str) -> int | None:
        """As the manifest states it: a request for each file would double their number, and its bytes are checked."""
        return self._records[file].num_bytes

    def read(self, file: str) -> bytes:
        length = self._records[file].num_bytes
        if self._mirror is not None:
            return self._mirrored(self._mirror, file, offset=0, length=length)
        content = self._fetched(file, offset=0, length=length)
        if length <= MAX_KEPT_FILE:
            self._keep(file, content)
        return content

    def read_range(self, file: str, *, offset: int, length: int) -> bytes:
        if self._mirror is not None:
            return self._mirrored(self._mirror, file, offset=offset, length=length)
        with self._lock:
            kept = self._kept.get(file)
            if kept is not None:
                self._kept.move_to_end(file)
                return kept[offset : offset + length]
        return self._fetched(file, offset=offset, length=length)

    def _mirrored(self, mirror: Mirror, file: str, *, offset: int, length: int) -> bytes:
        record = self._records[file]
        found = mirror.read_range(record, offset=offset, length=length)
        if found is None:
            with mirror.lock(record):
                found = mirror.read_range(record, offset=offset, length=length)
                if found is None:
                    content = self._fetched(file, offset=0, length=record.num_bytes)
                    mirror.keep(record, content, name=f'{self.name}/{file}')
                    found = content[offset : offset + length]
        return found

    def _fetched(self, file: str, *, offset: int, length: int) -> bytes:
        def read() -> bytes:
            content = bytes(self._store.get_range(file, start=offset, length=length))
            if len(content) != length:
                raise ConnectionError(f'{len(content)} of {length} bytes arrived')
            return content

        if length == 0:
            return b''
        try:
            return self._attempted(file, read)
        except FileNotFoundError:
            raise CacheDamagedError(f'{self.name}/{file}: is missing; copy the cache again') from None

    def stored_size(self, file: str) -> int | None:
        """Bytes of an object, by a request; None where there is none."""
        try:
            return int(self._attempted(file, lambda: self._store.head(file))['size'])
        except FileNotFoundError:
            return None

    def put(self, file: str, content: bytes) -> None:
        """Writes an object, whole or not at all."""
        self._attempted(file, lambda: self._store.put(file, content))

    def create(self, file: str, content: bytes) -> bytes | None:
        """Writes an object that is not there yet; returns the content of one that is."""
        from obstore import exceptions

        def create() -> bytes | None:
            try:
                self._store.put(file, content, mode='create')
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                return bytes(self._store.get(file).bytes())
            return None

        return self._attempted(file, create)

    def delete(self, file: str) -> None:
        """Deletes an object."""
        self._attempted(file, lambda: self._store.delete(file))

    def _attempted(self, file: str, read: Callable[[], Result]) -> Result:
        """The result of a request, made again where the reason of its failure may pass."""
        from obstore import exceptions

        problem: Exception | None = None
        for attempt in range(NUM_ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return read()
            except (exceptions.NotFoundError, FileNotFoundError):
                raise FileNotFoundError(file) from None
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
                raise UnavailableError(
                    f'{self.name}/{file}: access is refused ({short(error)}); check the credentials in the environment'
                ) from error
            except (exceptions.NotSupportedError, NotImplementedError) as error:
                raise InputError(f'{self.name}: cannot be written to; give the URL of a bucket') from error
            except (exceptions.BaseError, OSError, ValueError) as error:
                problem = error
        raise UnavailableError(
            f'{self.name}/{file}: {NUM_ATTEMPTS} requests failed ({short(problem)}); check the network, '
            'then run the same command again'
        ) from problem

    def _keep(self, file: str, content: bytes) -> None:
        with self._lock:
            if file not in self._kept:
                self._kept[file] = content
                self._num_kept += len(content)
            while self._num_kept > MAX_KEPT_BYTES:
                self._num_kept -= len(self._kept.popitem(last=False)[1])


def _store(url: str) -> Any:
    scheme = url.partition('://')[0]
    if scheme not in SCHEMES:
        raise InputError(f'{short(url)}: has the scheme {short(scheme)}, expected one of {", ".join(SCHEMES)}')
    try:
        from obstore import store
    except ImportError:
        raise UnavailableError(
            f'{short(url)}: a cache by URL needs obstore, which is not installed: pip install obstore'
        ) from None
    from_url: Any = store.from_url
    options: dict[str, Any] = {'timeout': TIMEOUT, 'connect_timeout': timedelta(seconds=10)}
    if scheme == 'http' or os.environ.get('AWS_ALLOW_HTTP', '').lower() == 'true':
        options['allow_http'] = True
    try:
        # Requests are repeated here, where the body of an answer counts too.
        return from_url(url, client_options=options, retry_config={'max_retries': 0, 'retry_timeout': TIMEOUT})
    except Exception as error:  # each store has errors of its own
        raise InputError(f'{short(url)}: is not a URL that can be read ({short(error)})') from error
