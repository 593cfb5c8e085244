"""Weights: addresses, files that are fetched whole or not at all, and backbones in other names."""

import dataclasses
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
import torch

from mtpd.detectors.downloads import download
from mtpd.detectors.of_mmdet import weights
from mtpd.detectors.of_mmdet.weights import backbone_weights, fetch_weights
from mtpd.detectors.of_mmdet.zoo import resolve
from mtpd.errors import InputError, UnavailableError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PyTorch's folder of checkpoints, empty."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def unreachable() -> str:
    """An address on which nobody listens."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    return f'http://127.0.0.1:{port}'


def publish(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Makes this the address of the weights of all models."""
    monkeypatch.setattr(weights, 'resolve', lambda name: dataclasses.replace(resolve(name), weights=address))


def test_a_checkpoint_that_is_there_is_used(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hub / 'net.pth').write_bytes(b'weights')
    publish(monkeypatch, 'https://example.invalid/net.pth')
    assert fetch_weights('r50') == hub / 'net.pth'


def test_without_a_network_the_message_names_address_and_option(
    hub: Path, unreachable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f'{unreachable}/net-01234567.pth'
    publish(monkeypatch, address)
    with pytest.raises(UnavailableError, match=rf'{address} .*--checkpoint FILE'):
        fetch_weights('r50')
    with pytest.raises(UnavailableError, match=rf'{address} .*; name a file$'):
        fetch_weights('r50', offline='name a file')
    assert not (hub / 'net-01234567.pth').exists()


def test_a_model_without_weights() -> None:
    with pytest.raises(InputError, match=r'yolox_nano_8xb8-300e_coco: the zoo has no weights .*--checkpoint FILE'):
        fetch_weights('yolox_nano_8xb8-300e_coco')
    with pytest.raises(InputError, match=r'mine\.py: a config file needs its weights.*--checkpoint FILE'):
        fetch_weights('mine.py')


@pytest.mark.parametrize(
    ('reference', 'ending'),
    [
        ('torchvision://resnet50', '/resnet50-0676ba61.pth'),
        ('torchvision://resnet50.imagenet1k_v2', '/resnet50-11ad3fa6.pth'),
        ('open-mmlab://detectron2/resnet50_caffe', '/resnet50_msra-5891d200.pth'),
        ('open-mmlab://detectron/resnet50_caffe', '/resnet50_caffe-788b5fa3.pth'),
        ('mmcls://mobilenet_v2', '/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth'),
        ('https://x.y/z-01234567.pth', 'https://x.y/z-01234567.pth'),
    ],
)
def test_addresses(reference: str, ending: str) -> None:
    address = weights._address(reference)
    assert address is not None
    assert address.endswith(ending)


@pytest.mark.parametrize(
    ('reference', 'message'),
    [
        ('torchvision://resnet5', 'torchvision:// has no weights named resnet5'),
        ('open-mmlab://x', 'open-mmlab:// has no weights named x'),
        ('s3://bucket/x.pth', r's3://bucket/x\.pth is not torchvision://'),
        ('gone.pth', r'there is no file gone\.pth; give a local file, or none'),
    ],
)
def test_references_that_lead_nowhere(reference: str, message: str) -> None:
    with pytest.raises(InputError, match=rf'init\.backbone: .*{message}'):
        backbone_weights(reference)


def test_a_backbone_that_cannot_be_fetched(hub: Path, unreachable: str) -> None:
    with pytest.raises(UnavailableError, match=r'set init\.backbone to a local file, or to none'):
        backbone_weights(f'{unreachable}/net-01234567.pth')
    assert not (hub / 'net-01234567.pth').exists()


def test_a_local_file_and_the_backbone_of_a_whole_detector(tmp_path: Path) -> None:
    path = tmp_path / 'net.pth'
    torch.save({'conv1.weight': torch.ones(2), 'fc.bias': torch.ones(3)}, path)
    assert list(backbone_weights(str(path))) == ['conv1.weight', 'fc.bias']
    torch.save({'state_dict': {'backbone.conv1.weight': torch.ones(2), 'neck.x': torch.ones(1)}}, path)
    assert list(backbone_weights(str(path))) == ['conv1.weight']


def test_swin_in_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / 'swin.pth'
    own = {
        'patch_embed.proj.weight': torch.ones(4, 3, 4, 4),
        'layers.0.blocks.0.attn.qkv.weight': torch.ones(12, 4),
        'layers.0.blocks.0.mlp.fc1.weight': torch.ones(16, 4),
        'head.weight': torch.ones(10, 4),
    }
    torch.save({'model': own}, path)
    assert sorted(backbone_weights(str(path))) == [
        'patch_embed.projection.weight',
        'stages.0.blocks.0.attn.w_msa.qkv.weight',
        'stages.0.blocks.0.ffn.layers.0.0.weight',
    ]


def test_a_pvt_of_its_authors_release_is_renamed(tmp_path: Path) -> None:
    """mmdet's configs point to it: queries, keys and values are one tensor here, and layers have other names."""
    parts = {name: torch.randn(size, 2) for name, size in (('q', 2), ('kv', 4))}
    state = {f'block1.0.attn.{name}.weight': value for name, value in parts.items()}
    state |= {'patch_embed1.proj.weight': torch.zeros(1), 'norm1.weight': torch.ones(1), 'head.weight': torch.ones(1)}
    torch.save(state, tmp_path / 'pvt.pth')
    found = backbone_weights(str(tmp_path / 'pvt.pth'))
    assert set(found) == {
        'layers.0.1.0.attn.attn.in_proj_weight', 'layers.0.0.projection.weight', 'layers.0.2.weight'
    }  # fmt: skip
    assert torch.equal(found['layers.0.1.0.attn.attn.in_proj_weight'], torch.cat([parts['q'], parts['kv']]))


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
    monkeypatch.setattr('mtpd.detectors.downloads.TIMEOUT', 0.3)
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
