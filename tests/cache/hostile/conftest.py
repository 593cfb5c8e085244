"""Forged caches whose hashes all fit, read where they can do no harm."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

import mtpd.cache
from mtpd.errors import MtpdError
from mtpd.system.files import sha256_bytes
from stress.damages import sign
from stress.processes import ProcessDiedError, in_limits

MEMORY = 192 * 2**20  # bytes that refusing or reading a cache may take
SHARD = '64x96/plain/p3/c/0/0/0/0'


@dataclass(frozen=True)
class Forgery:
    """A cache of the default recipe and what a forger does to it."""

    root: Path

    def sign(self, edit: Callable[[dict[str, Any]], object]) -> None:
        """Edits the manifest and makes its digest fit."""
        content = self.manifest()
        edit(content)
        (self.root / 'manifest.json').write_text(json.dumps(sign(content)))

    def manifest(self) -> Any:
        """The manifest as it is."""
        return json.loads((self.root / 'manifest.json').read_bytes())

    def replace(self, file: str, content: bytes) -> None:
        """Puts other content into a file and makes the manifest vouch for it."""
        (self.root / file).write_bytes(content)
        record = {'num_bytes': len(content), 'sha256': sha256_bytes(content)}
        self.sign(lambda manifest: manifest['files'].update({file: record}))

    def edit_array(self, file: str, dtype: str, edit: Callable[[np.ndarray], object]) -> None:
        """Edits the values of a plain array's file."""
        values = np.frombuffer((self.root / file).read_bytes(), dtype).copy()
        edit(values)
        self.replace(file, values.tobytes())

    def replace_first_chunk(self, packed: bytes) -> None:
        """Puts other compressed bytes into the first row of p3's first shard, of two rows; all checksums fit."""
        content = (self.root / SHARD).read_bytes()
        start, length = np.frombuffer(content[-36:-4], '<u8')[2:].tolist()
        self.replace(SHARD, join_shard([packed + crc(packed), content[start : start + length]]))
        number = int.from_bytes(crc(packed), 'little')
        self.edit_array('64x96/plain/crc32c/c/0/0', '<u4', lambda values: values.__setitem__(0, number))

    def replace_shard_index(self, entry: tuple[int, int]) -> None:
        """Puts another offset and length into the second entry of p3's first shard."""
        content = (self.root / SHARD).read_bytes()
        entries = np.frombuffer(content[-36:-4], '<u8').reshape(2, 2).copy()
        entries[1] = entry
        self.replace(SHARD, content[:-36] + closed(entries.tobytes()))

    def read(self, root: Path | None = None) -> str:
        """Opens this cache or another and reads all of it in little memory: 'read', or the message of our error.

        Anything else that happens comes back as another text: an exception of another kind, or the end of the process.
        """
        try:
            return in_limits(partial(_read_all, root or self.root), memory=MEMORY)
        except ProcessDiedError as error:
            return str(error)

    def require_refused(self, message: str) -> None:
        """It is refused by an error of ours, in one short line that names the cache."""
        result = self.read()
        assert message in result
        assert not result.startswith('not our error')
        assert str(self.root) in result
        assert '\n' not in result
        assert len(result) < 1000


@pytest.fixture(scope='session')
def sound(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., Any]) -> Path:
    """A finished cache that nobody touches."""
    root = tmp_path_factory.mktemp('sound') / 'cache'
    make_recipe().write(root)
    return root


@pytest.fixture
def forgery(sound: Path, tmp_path: Path) -> Forgery:
    """A finished cache to be forged."""
    return Forgery(Path(shutil.copytree(sound, tmp_path / 'cache')))


@pytest.fixture(scope='session')
def sound_with_rois(tmp_path_factory: pytest.TempPathFactory, with_rois: Any) -> Path:
    """A finished cache with proposals that nobody touches."""
    root = tmp_path_factory.mktemp('sound') / 'cache'
    with_rois.write(root)
    return root


@pytest.fixture
def roi_forgery(sound_with_rois: Path, tmp_path: Path) -> Forgery:
    """A finished cache with proposals to be forged."""
    return Forgery(Path(shutil.copytree(sound_with_rois, tmp_path / 'cache')))


def join_shard(chunks: list[bytes]) -> bytes:
    """A shard of these chunks."""
    lengths = np.array([len(chunk) for chunk in chunks], '<u8')
    return b''.join(chunks) + closed(np.stack([np.cumsum(lengths) - lengths, lengths], axis=1).tobytes())


def closed(content: bytes) -> bytes:
    """Content and its CRC-32C."""
    return content + crc(content)


def crc(content: bytes) -> bytes:
    """CRC-32C as it stands in files."""
    return int(google_crc32c.value(content)).to_bytes(4, 'little')


def _read_all(root: Path) -> str:
    try:
        cache = mtpd.cache.open(root)
        for image_id in cache.image_ids:
            for view in cache.views:
                cache.read(image_id, view)
            if cache.manifest.description.rois is not None:
                cache.rois(image_id)
        cache.teacher_weights()
    except MtpdError as error:
        return str(error)
    except BaseException as error:
        return f'not our error, {type(error).__name__}: {error}'
    return 'read'
