"""Caches in an object store or on a web server, by byte ranges or through a mirror.

What arrives is trusted no more than a local file: manifest, tables and rows are checked by the same hashes.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping

from mtpd.cache.format.manifest import MANIFEST_FILE, FileRecord, Manifest, parse_manifest
from mtpd.cache.format.strict_json import parse_json
from mtpd.cache.object_store import ObjectStore
from mtpd.cache.reading.mirror import Mirror
from mtpd.errors import CacheDamagedError, CacheIncompleteError

# Whole tables, of which rows are read one at a time.
MAX_KEPT_BYTES, MAX_KEPT_FILE = 2**28, 2**21


class RemoteFolder:
    """A folder by its URL. Safe to use from several threads."""

    def __init__(
        self, url: str, *, mirror: Mirror | None = None, records: Mapping[str, FileRecord] | None = None
    ) -> None:
        self._store = ObjectStore(url)
        self.name = self._store.name
        self._mirror = mirror
        # Those of the manifest, when it has been read.
        self._records = records or {}
        self._listed: dict[str, int] | None = None
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._num_kept = 0
        self._lock = threading.Lock()

    def read_manifest(self) -> Manifest:
        try:
            content = self._store.read(MANIFEST_FILE)
        except FileNotFoundError:
            raise CacheIncompleteError(
                f'{self.name}: no cache here ({MANIFEST_FILE} is missing); check the URL, or finish its extraction'
            ) from None
        manifest = parse_manifest(parse_json(content, name=f'{self.name}/{MANIFEST_FILE}'), name=self.name)
        self._records = manifest.files
        return manifest

    def size(self, file: str) -> int | None:
        """As `files` found it, else as the manifest states it: its bytes are checked, without another request."""
        return self._records[file].num_bytes if self._listed is None else self._listed.get(file)

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

    def files(self) -> dict[str, int]:
        self._listed = {file: stored.num_bytes for file, stored in self._store.objects().items()}
        return self._listed

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
        try:
            return self._store.read_range(file, offset=offset, length=length)
        except FileNotFoundError:
            raise CacheDamagedError(f'{self.name}/{file}: is missing; copy the cache again') from None

    def _keep(self, file: str, content: bytes) -> None:
        with self._lock:
            if file not in self._kept:
                self._kept[file] = content
                self._num_kept += len(content)
            while self._num_kept > MAX_KEPT_BYTES:
                self._num_kept -= len(self._kept.popitem(last=False)[1])
