"""A file is there whole or not at all, and equal values have equal hashes."""

import hashlib
import os
import resource
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpd.errors import UnavailableError
from mtpd.system.files import (
    canonical_json,
    fsync_directory,
    require_writable,
    sha256_bytes,
    sha256_file,
    write_atomically,
    write_exclusively,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_its_folders_are_made_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / 'a' / 'b' / 'file'
    write_atomically(path, b'one')
    write_atomically(path, b'two')
    assert path.read_bytes() == b'two'
    assert names(path.parent) == ['file']


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    write_atomically(path, b'old')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match='too large'):
            write_atomically(path, b'x' * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b'old'
    assert names(tmp_path) == ['file']


def test_a_folder_in_the_way(tmp_path: Path) -> None:
    (tmp_path / 'file').mkdir()
    with pytest.raises(OSError, match='directory'):
        write_atomically(tmp_path / 'file', b'x')
    assert names(tmp_path) == ['file']


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, contents = tmp_path / 'file', [bytes([number]) * 300_000 for number in range(5)]
    write_atomically(path, contents[0])
    done = threading.Event()

    def write() -> None:
        for content in contents * 6:
            write_atomically(path, content)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    num_reads = 0
    while not done.is_set() or num_reads == 0:
        assert path.read_bytes() in contents
        num_reads += 1
    thread.join()


@pytest.mark.parametrize(
    ('write', 'expected'),
    [
        (write_atomically, ['fsync file', 'replace', 'fsync folder']),
        (partial(write_atomically, flush=False), ['replace']),
        (write_exclusively, ['fsync file', 'link', 'fsync folder']),
    ],
)
def test_the_content_is_flushed_before_the_name_and_the_name_at_last(
    write: Callable[[Path, bytes], None], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            name = function.__name__
            if name == 'fsync':
                name += ' folder' if stat.S_ISDIR(os.fstat(arguments[0]).st_mode) else ' file'
            events.append(name)
            return function(*arguments)

        return call

    for owner, name in ((os, 'fsync'), (os, 'link'), (Path, 'replace')):
        monkeypatch.setattr(owner, name, noted(getattr(owner, name)))
    write(tmp_path / 'file', b'content')
    assert events == expected


def test_fsync_of_a_folder_that_is_not_there(tmp_path: Path) -> None:
    fsync_directory(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_directory(tmp_path / 'gone')


def test_a_place_that_can_be_written(tmp_path: Path) -> None:
    require_writable(tmp_path)
    require_writable(tmp_path / 'a' / 'b')
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may write into: not root either, for whom it is a file system of its own."""
    folder = tmp_path / 'read-only'
    folder.mkdir(mode=0o555)
    if os.geteuid():
        yield folder
        return
    mount = ['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip('root could write anywhere, and may not mount a file system here')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


@pytest.mark.parametrize('name', ['', 'a', 'a/b'])
def test_a_place_that_cannot_be_written(name: str, read_only: Path) -> None:
    reasons = '(the file system is read-only|no permission to write here)'
    with pytest.raises(UnavailableError, match=f'{read_only / name}: {reasons}; choose another --out'):
        require_writable(read_only / name)


def test_hashes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / 'file').write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256_bytes(content) == sha256_file(tmp_path / 'file') == expected
    assert sha256_bytes(b'') == 'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none() | st.lists(st.integers())))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_canonical_json() -> None:
    assert canonical_json({'b': [1, 2.5], 'a': 'é'}) == b'{"a":"\\u00e9","b":[1,2.5]}'
    assert canonical_json({'a': (1, 2)}) == canonical_json({'a': [1, 2]})
    assert canonical_json([1, 2]) != canonical_json([2, 1])
    for number in (float('nan'), float('inf')):
        with pytest.raises(ValueError, match='JSON'):
            canonical_json([number])
