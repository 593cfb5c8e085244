"""Fetching from a real server on this machine: whole, damaged, cut off, refused; and what is there already."""

import gc
import hashlib
import logging
import socket
import warnings
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mtpd.detectors.weights import download
from mtpd.errors import InputError, UnavailableError

CONTENT = bytes(range(256)) * 9000  # more than two pieces
HASH = hashlib.sha256(CONTENT).hexdigest()[:8]
ADVICE = 'give a local file'
Serve = Callable[[Mapping[str, bytes]], str]


class Handler(BaseHTTPRequestHandler):
    """Serves `files` by path; of a path with `cut` in it only the first half."""

    files: Mapping[str, bytes]

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        if 'login' in self.path:
            self.send_header('Content-Type', 'text/html; charset=utf-8')
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if 'cut' in self.path else content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    servers: list[ThreadingHTTPServer] = []

    def start(files: Mapping[str, bytes]) -> str:
        handler = type('FilesHandler', (Handler,), {'files': files})
        server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return f'http://127.0.0.1:{server.server_address[1]}'

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith('.lock'))


def test_a_file_is_fetched_once(serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = f'net-{HASH}.pth'
    files = {f'/a/{name}': CONTENT}
    address = serve(files) + f'/a/{name}'
    folder = tmp_path / 'hub' / 'checkpoints'
    with caplog.at_level(logging.INFO):
        path = download(address, folder, offline=ADVICE)
    assert path == folder / name
    assert path.read_bytes() == CONTENT
    assert address in caplog.text
    files.clear()
    assert download(address, folder, offline=ADVICE) == path
    assert visible(folder) == [name]


def test_names_that_are_quoted_in_the_address(serve: Serve, tmp_path: Path) -> None:
    address = serve({f'/gn%2Bws/a%2Bb-{HASH}.pth': CONTENT}) + f'/gn%2Bws/a%2Bb-{HASH}.pth'
    assert download(address, tmp_path, offline=ADVICE).name == f'a+b-{HASH}.pth'


def test_a_name_without_a_hash_is_taken_with_a_warning(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = download(serve({'/net.pth': b'abc'}) + '/net.pth', tmp_path, offline=ADVICE)
    assert path.read_bytes() == b'abc'
    assert 'cannot be verified' in caplog.text


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        (f'wrong-{HASH}.pth', b'x' + CONTENT[1:], f'expected {HASH}; try again, or give a local file'),
        (f'cut-{HASH}.pth', CONTENT, rf'connection lost after {len(CONTENT) // 2} of {len(CONTENT)} bytes'),
        ('login.pth', CONTENT, 'returned a web page'),
        (f'gone-{HASH}.pth', None, r'HTTP Error 404: Not Found; give a local file'),
    ],
)
def test_what_is_wrong_is_not_kept(
    serve: Serve, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    base = serve({} if content is None else {f'/{name}': content})
    with pytest.raises(UnavailableError, match=message) as caught:
        download(f'{base}/{name}', tmp_path, offline=ADVICE)
    assert f'{base}/{name}' in str(caught.value)
    assert '\n' not in str(caught.value)
    assert visible(tmp_path) == []


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    address = f'http://127.0.0.1:{port}/net-{HASH}.pth'
    with pytest.raises(UnavailableError, match=rf'cannot fetch {address} .*refused.*; give a local file'):
        download(address, tmp_path, offline=ADVICE)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / 'file').touch()
    with pytest.raises(UnavailableError, match='cannot fetch'):
        download(f'http://127.0.0.1:9/net-{HASH}.pth', tmp_path / 'file' / 'checkpoints', offline=ADVICE)


def test_a_server_that_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setattr('mtpd.detectors.weights.TIMEOUT', 0.3)
    with socket.create_server(('127.0.0.1', 0)) as silent:
        address = f'http://127.0.0.1:{silent.getsockname()[1]}/net-{HASH}.pth'
        with warnings.catch_warnings():
            # http.client leaves its socket to the garbage collector when it times out.
            warnings.simplefilter('ignore', ResourceWarning)
            with pytest.raises(UnavailableError, match='timed out'):
                download(address, tmp_path, offline=ADVICE)
            gc.collect()


def test_a_damaged_file_that_is_there_is_reported(tmp_path: Path) -> None:
    path = tmp_path / f'net-{HASH}.pth'
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=rf'sha256 starts with \w{{8}}, expected {HASH}; delete it'):
        download(f'http://127.0.0.1:9/net-{HASH}.pth', tmp_path, offline=ADVICE)
    assert path.exists()


def test_two_programs_fetch_a_file_once(serve: Serve, tmp_path: Path) -> None:
    name = f'net-{HASH}.pth'
    address = serve({f'/{name}': CONTENT}) + f'/{name}'
    threads = [Thread(target=download, args=(address, tmp_path), kwargs={'offline': ADVICE}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert visible(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == CONTENT
