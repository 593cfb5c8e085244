"""The objects below a URL, in an object store or on a web server.

Requests that fail for a reason that may pass are made again. An object is written whole or not at all.
"""

import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mtpd.cache.format.strict_json import MAX_BYTES, short
from mtpd.errors import CacheDamagedError, InputError, MtpdError, UnavailableError

Result = TypeVar('Result')

NUM_ATTEMPTS = 6
FIRST_WAIT = 0.2  # seconds; each wait is twice as long as the one before
TIMEOUT = timedelta(seconds=60)
NUM_PIECES = 4
SCHEMES = ('s3', 'gs', 'az', 'abfs', 'http', 'https')


class StoredObject(NamedTuple):
    """What a listing says of an object; the tag differs between any two versions of it whose contents differ."""

    num_bytes: int
    tag: str


class ObjectStore:
    """The objects below a URL. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self.name = url.rstrip('/')
        self._store = _store(self.name)

    def read(self, file: str) -> bytes:
        """The content of a small object; FileNotFoundError where there is none."""

        def read() -> bytes:
            response = self._store.get(file)
            if response.meta['size'] > MAX_BYTES:
                size = response.meta['size']
                raise CacheDamagedError(f'{self.name}/{file}: has {size} bytes, at most {MAX_BYTES} were expected')
            return bytes(response.bytes())

        return self._attempted(file, read)

    def read_range(self, file: str, *, offset: int, length: int) -> bytes:
        """Exactly these bytes of an object; FileNotFoundError where there is none."""

        def read() -> bytes:
            content = bytes(self._store.get_range(file, start=offset, length=length))
            if len(content) != length:
                raise ConnectionError(f'{len(content)} of {length} bytes arrived')
            return content

        return self._attempted(file, read) if length else b''

    def objects(self, prefix: str = '') -> dict[str, StoredObject]:
        """All objects whose folder is `prefix`, or a folder in it; '' for all.

        InputError: a web server, which lists nothing.
        """
        if type(self._store).__name__ == 'HTTPStore':
            raise InputError(
                f'{self.name}: is on a web server, which lists no files; give a folder, or the URL of a bucket'
            )

        def read() -> dict[str, StoredObject]:
            return {
                str(one['path']): StoredObject(int(one['size']), _tag(one))
                for batch in self._store.list(prefix or None)
                for one in batch
            }

        return self._attempted(prefix, read)

    def exists(self, file: str) -> bool:
        """Whether an object is there."""
        try:
            self._attempted(file, lambda: self._store.head(file))
        except FileNotFoundError:
            return False
        return True

    def put(self, file: str, content: bytes, *, require: Callable[[], object] | None = None) -> str:
        """Writes an object and returns its tag; `require` is called before each attempt, and may refuse it."""

        def put() -> str:
            if require is not None:
                require()
            # In pieces of 5 MB, few at a time, so that each arrives before its timeout on a slow line.
            return _tag(self._store.put(file, content, max_concurrency=NUM_PIECES))

        try:
            return self._attempted(file, put)
        except FileNotFoundError:
            raise UnavailableError(f'{self.name}/{file}: cannot be written, its bucket has gone') from None

    def create(self, file: str, content: bytes) -> tuple[bytes, str]:
        """Writes an object unless it is there; returns content and tag of what is there then."""
        from obstore import exceptions

        def create() -> tuple[bytes, str]:
            try:
                return content, _tag(self._store.put(file, content, mode='create'))
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                pass
            try:
                response = self._store.get(file)
                return bytes(response.bytes()), _tag(response.meta)
            except (exceptions.NotFoundError, FileNotFoundError):
                raise ConnectionError('it was deleted at this moment') from None

        return self._attempted(file, create)

    def delete(self, files: Iterable[str]) -> None:
        """Deletes objects, those that are there; a thousand in a request where the store can."""
        wanted = list(files)
        try:
            if wanted:
                self._attempted(wanted[0], lambda: self._store.delete(wanted))
        except FileNotFoundError:  # not all stores pass over what is not there
            for file in wanted:
                with suppress(FileNotFoundError):
                    self._attempted(file, partial(self._store.delete, file))

    def _attempted(self, file: str, request: Callable[[], Result]) -> Result:
        """The result of a request, made again where the reason of its failure may pass."""
        from obstore import exceptions

        problem: Exception | None = None
        for attempt in range(NUM_ATTEMPTS):
            if attempt:
                time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
            try:
                return request()
            except MtpdError:
                raise
            except (exceptions.NotFoundError, FileNotFoundError):
                raise FileNotFoundError(file) from None
            except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
                raise UnavailableError(
                    f'{self.name}/{file}: access is refused ({_reason(error)}); check the credentials'
                ) from error
            except (exceptions.BaseError, OSError, ValueError) as error:
                problem = error
                if 'NoSuchBucket' in str(error):
                    break
        raise UnavailableError(
            f'{self.name}/{file}: {attempt + 1} requests failed ({_reason(problem)}); check URL, credentials and '
            'network, then run the same command again'
        ) from problem


def _reason(error: Exception | None) -> str:
    """What a store answered, without the request and the internals around it."""
    code = re.search(r'<Code>(\w+)</Code>', str(error))
    return short(code[1] if code else str(error).split('\n')[0].rpartition(' - ')[2])


def _tag(answer: Any) -> str:
    """Stores differ in whether they quote a tag, and between a listing and an answer."""
    return (answer.get('e_tag') or '').strip('"')


def _store(url: str) -> Any:
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        raise InputError(f'{short(url)}: has the scheme {short(parts.scheme)}, expected one of {", ".join(SCHEMES)}')
    if not parts.netloc or parts.query or parts.fragment or {'', '.', '..'} & set(parts.path.split('/')[1:]):
        raise InputError(
            f'{short(url)}: expected the scheme, a bucket or host, and folders, such as s3://bucket/caches/r101'
        )
    try:
        from obstore import store
    except ImportError:
        raise UnavailableError(
            f'{short(url)}: a cache by URL needs obstore, which is not installed: pip install obstore'
        ) from None
    from_url: Any = store.from_url
    options: dict[str, Any] = {'timeout': TIMEOUT, 'connect_timeout': timedelta(seconds=10)}
    if parts.scheme == 'http' or os.environ.get('AWS_ALLOW_HTTP', '').lower() == 'true':
        options['allow_http'] = True
    try:
        # Requests are repeated here, where the body of an answer counts too.
        return from_url(url, client_options=options, retry_config={'max_retries': 0, 'retry_timeout': TIMEOUT})
    except Exception as error:  # each store has errors of its own
        raise InputError(f'{short(url)}: is not a URL that can be read ({short(error)})') from error
