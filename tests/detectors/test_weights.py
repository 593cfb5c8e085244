"""Where weights come from: zoo models and backbones."""

import dataclasses
import socket
from pathlib import Path

import pytest
import torch

from mtpd.detectors import weights
from mtpd.detectors.weights import backbone_weights, fetch_weights
from mtpd.detectors.zoo import resolve
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


def test_a_checkpoint_that_is_there_is_used(hub: Path) -> None:
    (hub / 'net.pth').write_bytes(b'weights')
    model = dataclasses.replace(resolve('r50'), weights='https://example.invalid/net.pth')
    assert fetch_weights(model) == hub / 'net.pth'


def test_without_a_network_the_message_names_address_and_option(hub: Path, unreachable: str) -> None:
    address = f'{unreachable}/net-01234567.pth'
    model = dataclasses.replace(resolve('r50'), weights=address)
    with pytest.raises(UnavailableError, match=rf'{address} .*--checkpoint FILE'):
        fetch_weights(model)
    with pytest.raises(UnavailableError, match=rf'{address} .*; name a file$'):
        fetch_weights(model, offline='name a file')
    assert not (hub / 'net-01234567.pth').exists()


def test_a_model_without_weights() -> None:
    with pytest.raises(InputError, match=r'yolox_nano_8xb8-300e_coco: the zoo has no weights .*--checkpoint FILE'):
        fetch_weights(resolve('yolox_nano_8xb8-300e_coco'))


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
