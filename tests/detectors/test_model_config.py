"""Models' configs: names of types, and references to weights, of which nothing is fetched unless it was asked for."""

import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtpd.detectors.of_mmdet.model_config import (
    backbone_reference,
    drop_weight_references,
    type_name,
    weight_references,
)
from mtpd.detectors.of_mmdet.models import build_detector, load_config, no_downloads
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.errors import InputError

ADDRESS = 'https://127.0.0.1:9/own.pth'


class PretrainedInit:
    """Stands for mmengine's class of this name, which configs in Python name itself."""


@pytest.mark.parametrize(
    ('name', 'reference'),
    [
        ('retinanet_r50_fpn_1x_coco', 'torchvision://resnet50'),
        ('faster-rcnn_r50-caffe_fpn_1x_coco', 'open-mmlab://detectron2/resnet50_caffe'),
        ('retinanet_pvt-t_fpn_1x_coco', 'https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth'),
        ('yolox_nano_8xb8-300e_coco', None),
    ],
)
def test_where_the_backbone_of_a_zoo_model_comes_from(name: str, reference: str | None) -> None:
    assert backbone_reference(load_config(name).model) == reference


@pytest.mark.parametrize(
    'model',
    [
        {'backbone': {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'own.pth'}}},
        {'backbone': {'init_cfg': {'type': 'mmengine.Pretrained', 'checkpoint': 'own.pth'}}},
        {'backbone': {'init_cfg': [{'type': 'Kaiming'}, {'type': PretrainedInit, 'checkpoint': 'own.pth'}]}},
        {'backbone': {'init_cfg': {'checkpoint': 'own.pth'}}},
        {'backbone': {'pretrained': 'own.pth'}},
        {'pretrained': 'own.pth', 'backbone': {}},
    ],
)
def test_spellings_of_a_backbone_s_weights(model: dict[str, Any]) -> None:
    assert backbone_reference(model) == 'own.pth'
    drop_weight_references(model)
    assert backbone_reference(model) is None
    assert not list(weight_references(model))


def test_every_reference_to_weights_is_dropped_and_nothing_else() -> None:
    pretrained, other = {'type': 'Pretrained', 'checkpoint': 'x'}, {'type': 'Kaiming'}
    config = {
        'backbone': {'init_cfg': dict(pretrained), 'pretrained': True, 'with_cp': True, 'pretrain_img_size': 224},
        'neck': {'init_cfg': [pretrained, other], 'rfp_backbone': {'pretrained': 'x', 'stages': (1, 2)}},
        'heads': [{'init_cfg': [pretrained]}, {'init_cfg': dict(other), 'checkpoint_path': 'x'}],
        'parts': ({'own': 'torchvision://x', 'loss_weight': 'x'},),
        'teacher_ckpt': 'https://x',
    }
    found = {
        'backbone.init_cfg.checkpoint': 'x', 'backbone.pretrained': 'True', 'neck.init_cfg.0.checkpoint': 'x',
        'neck.rfp_backbone.pretrained': 'x', 'heads.0.init_cfg.0.checkpoint': 'x', 'heads.1.checkpoint_path': 'x',
        'parts.0.own': 'torchvision://x', 'teacher_ckpt': 'https://x',
    }  # fmt: skip
    assert dict(weight_references(config)) == found
    drop_weight_references(config)
    assert config == {
        'backbone': {'pretrained': False, 'with_cp': True, 'pretrain_img_size': 224},
        'neck': {'init_cfg': [other], 'rfp_backbone': {'pretrained': None, 'stages': (1, 2)}},
        'heads': [{}, {'init_cfg': other, 'checkpoint_path': None}],
        'parts': [{'own': None, 'loss_weight': 'x'}],
        'teacher_ckpt': None,
    }


def _from_mmengine(address: str) -> Any:
    from mmengine.runner.checkpoint import load_checkpoint

    return load_checkpoint(nn.Linear(1, 1), address.rpartition('/')[2])  # a local file


def _by_socket(address: str) -> Any:
    return socket.create_connection((address.split('/')[2].split(':')[0], 9))


def _from_hub_s_folder(address: str) -> Any:
    return torch.load(Path(torch.hub.get_dir()) / 'checkpoints' / address.rpartition('/')[2])


# As code has them that imported them before.
WAYS = [torch.hub.load_state_dict_from_url, urllib.request.urlopen, _from_mmengine, _by_socket, _from_hub_s_folder]


@pytest.mark.parametrize('way', WAYS, ids=lambda way: way.__name__)
def test_a_backbone_that_fetches_by_itself_is_named(way: Callable[[str], Any]) -> None:
    """In a way that no spelling tells, when its weights are initialised; also where it hides that this failed."""
    prepare()
    from mmdet.models.backbones import ResNet
    from mmdet.registry import MODELS

    class Fetching(ResNet):  # type: ignore[misc]
        def __init__(self, hidden: str, **options: Any) -> None:
            super().__init__(depth=18, base_channels=8)
            self.hidden, self.is_quiet = hidden, options['quiet']

        def init_weights(self) -> None:
            super().init_weights()
            try:
                way('https://' + self.hidden)
            except Exception:
                if not self.is_quiet:
                    raise

    MODELS.register_module(module=Fetching, force=True)
    config = load_config('retinanet_r50_fpn_1x_coco')
    config.model.neck.in_channels = [8, 16, 32, 64]
    for quiet in (False, True):
        config.model.backbone = {'type': 'Fetching', 'hidden': ADDRESS.removeprefix('https://'), 'quiet': quiet}
        with pytest.raises(InputError, match=r'127\.0\.0\.1|own\.pth') as caught:
            build_detector(config)
        assert '\n' not in str(caught.value)


def test_loading_works_again_afterwards_and_own_files_meanwhile(tmp_path: Path) -> None:
    before = torch.load, socket.socket.connect, socket.getaddrinfo, urllib.request.urlopen
    torch.save({'a': torch.ones(1)}, tmp_path / 'constants.pth')
    with no_downloads() as refused:
        assert torch.load(tmp_path / 'constants.pth')['a'] == 1
    assert not refused
    assert before == (torch.load, socket.socket.connect, socket.getaddrinfo, urllib.request.urlopen)


class Own:
    """A class that a config of pure Python refers to."""


@pytest.mark.parametrize(
    ('kind', 'name'),
    [('Own', 'Own'), ('mmdet.Own', 'Own'), ('a.b.Own', 'Own'), (Own, 'Own'), (None, '')],
    ids=repr,
)
def test_the_bare_name(kind: Any, name: str) -> None:
    assert type_name({'type': kind}) == name


def test_no_type() -> None:
    assert type_name({}) == ''
