"""Building detectors: what is set, what is dropped, what is left alone."""

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from mtpd.detectors.of_mmdet.model_config import make_buildable, set_num_classes
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.of_mmdet.zoo import configs_folder
from mtpd.detectors.packages import missing_package
from mtpd.errors import InputError, MtpdError, UnavailableError


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError(f'a connection was opened: {arguments}')

    monkeypatch.setattr(socket.socket, 'connect', refuse)


def small(name: str) -> Any:
    """A zoo config with the smallest ResNet, so that tests are quick."""
    config = load_config(name)
    config.model.backbone.update(depth=18, base_channels=8, norm_eval=False)
    config.model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    return config


def test_names_aliases_and_paths_give_the_same_config(tmp_path: Path) -> None:
    by_name = load_config('retinanet_r50_fpn_1x_coco')
    assert load_config('r50').model == by_name.model
    own = tmp_path / 'own.py'
    own.write_text(f'_base_ = {by_name.filename!r}\nmodel = dict(bbox_head=dict(num_classes=3))\n')
    assert load_config(str(own)).model.bbox_head.num_classes == 3


def test_configs_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='retinanet_r50'):
        load_config('retinanet_r50_fpn_1x_cocco')
    with pytest.raises(InputError, match=r'gone\.py: there is no such file'):
        load_config(str(tmp_path / 'gone.py'))
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(InputError, match=r"config\.json: its suffix is '\.json', expected a \.py mmdet config"):
        load_config(str(tmp_path / 'config.json'))
    for name, text, message in [
        ('syntax.py', 'model = dict(', 'syntax.py cannot be read: SyntaxError'),
        ('raises.py', 'raise OSError("x")', 'raises.py cannot be read: OSError: x'),
        ('base.py', '_base_ = "nothing.py"', 'base.py cannot be read'),
        ('empty.py', 'lr = 1', 'empty.py has no `model`'),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            load_config(str(tmp_path / name))


@pytest.mark.parametrize(
    ('module', 'wanted', 'unwanted'),
    [
        ('no_such_package.models', r'no_such_package\.models .*PYTHONPATH', 'pip'),
        ('mmpretrain.models', 'pip install mmpretrain', 'PYTHONPATH'),
        ('own_module', 'the package nowhere_to_be_found, which is not installed', 'pip'),
        ('own_module.models', r'own_module\.models', 'pip'),
    ],
)
def test_a_config_of_a_missing_package_names_it(
    module: str, wanted: str, unwanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may own an unknown name on the package index, so that it is not advised."""
    monkeypatch.syspath_prepend(tmp_path)
    if module.endswith('own_module'):
        (tmp_path / 'own_module.py').write_text('import nowhere_to_be_found\n')
    path = tmp_path / 'custom.py'
    path.write_text(f'custom_imports = dict(imports=[{module!r}])\nmodel = dict(type="RetinaNet")\n')
    with pytest.raises(UnavailableError, match=wanted) as caught:
        load_config(str(path))
    assert unwanted not in str(caught.value)


@pytest.mark.parametrize(
    ('error', 'advice'),
    [
        (ImportError('Please run "pip install sklearn" to install sklearn first.'), 'pip install scikit-learn'),
        (ModuleNotFoundError('', name='skimage.color'), 'pip install scikit-image'),
        (ModuleNotFoundError('', name='own.models.extra'), 'the module own.models.extra, which is not installed'),
    ],
)
def test_packages_are_advised_by_the_names_of_their_distributions(error: ImportError, advice: str) -> None:
    assert missing_package(error).endswith(advice)


@pytest.mark.usefixtures('_no_network')
def test_building_is_quiet_offline_and_leaves_the_config_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = small('retinanet_r50_fpn_1x_coco')
    config.model.backbone.init_cfg.checkpoint = 'https://127.0.0.1:9/resnet.pth'
    before = config.to_dict()
    with caplog.at_level(logging.INFO):
        build_detector(config, num_classes=5)
    assert config.to_dict() == before
    assert capfd.readouterr() == ('', '')
    assert not caplog.records


def test_initialisation_is_the_authors_own_when_asked() -> None:
    config = small('retinanet_r50_fpn_1x_coco')
    # RetinaNet starts with a foreground probability of 0.01 (Lin et al. 2017, section 4.1).
    prior = torch.tensor(-4.59512).expand(9 * 80)
    model: Any = build_detector(config)
    torch.testing.assert_close(model.bbox_head.retina_cls.bias.data, prior)
    model = build_detector(config, init_weights=False)
    assert not torch.allclose(model.bbox_head.retina_cls.bias.data, prior)


def test_the_number_of_classes_reaches_every_head_but_the_proposals() -> None:
    config = small('mask-rcnn_r50_fpn_1x_coco')
    config.model.rpn_head.in_channels = 16
    config.model.roi_head.bbox_roi_extractor.out_channels = 16
    config.model.roi_head.bbox_head.in_channels = 16
    # Left out, mmdet would take 80.
    del config.model.roi_head.mask_head['num_classes']
    config.model.roi_head.mask_head.in_channels = 16
    model: Any = build_detector(config, num_classes=7, init_weights=False)
    assert model.rpn_head.rpn_cls.out_channels == 3
    assert model.roi_head.bbox_head.fc_cls.out_features == 8
    assert model.roi_head.bbox_head.fc_reg.out_features == 28
    assert model.roi_head.mask_head.conv_logits.out_channels == 7


@pytest.mark.slow
def test_the_number_of_classes_reaches_heads_in_lists_and_leaves_stuff_alone() -> None:
    model: Any = build_detector(load_config('htc_r50_fpn_1x_coco'), num_classes=7, init_weights=False)
    assert [head.fc_cls.out_features for head in model.roi_head.bbox_head] == [8, 8, 8]
    assert [head.conv_logits.out_channels for head in model.roi_head.mask_head] == [7, 7, 7]
    assert model.roi_head.semantic_head.num_classes == 183


def panoptic(name: str) -> Any:
    """The model of a zoo config with a panoptic head."""
    return load_config(name).model


def test_the_classes_of_a_panoptic_head_without_stuff() -> None:
    model = panoptic('mask2former_r50_8xb2-lsj-50e_coco')
    set_num_classes(model, 7)
    for head in (model.panoptic_head, model.panoptic_fusion_head):
        assert (head.num_things_classes, head.num_stuff_classes) == (7, 0)
    assert model.panoptic_head.loss_cls.class_weight == [1.0] * 7 + [0.1]
    model.panoptic_head.loss_cls.class_weight = [1.0, 2.0, 0.1]
    with pytest.raises(InputError, match=r'class_weight is \[1\.0, 2\.0, 0\.1\]'):
        set_num_classes(model, 7)


@pytest.mark.parametrize('name', ['maskformer_r50_ms-16xb1-75e_coco', 'mask2former_r50_8xb2-lsj-50e_coco-panoptic'])
def test_a_panoptic_head_with_stuff_is_refused_and_told_what_works(name: str) -> None:
    model = panoptic(name)
    with pytest.raises(InputError, match='53 stuff classes') as caught:
        set_num_classes(model, 7)
    changes = yaml.safe_load(str(caught.value).split('`model: ')[1].rstrip('`'))
    config = load_config(name)
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    set_num_classes(config.model, 7)
    assert config.model.panoptic_head.num_things_classes == 7


@pytest.mark.parametrize('name', ['crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman', 'rpn_r50_fpn_1x_coco'])
def test_detectors_of_one_class(name: str) -> None:
    model = load_config(name).model
    set_num_classes(model, 1)
    with pytest.raises(InputError, match=r'one class, .* has 2 classes'):
        set_num_classes(model, 2)


@pytest.mark.parametrize('kind', ['SyncBN', 'MMSyncBN', 'mmdet.NaiveSyncBN', nn.SyncBatchNorm, 'class'])
def test_norms_however_their_type_is_written(kind: Any) -> None:
    config = {'norm_cfg': {'type': type('SyncBN', (), {}) if kind == 'class' else kind, 'eps': 0}}
    make_buildable(config, zoo_folder=configs_folder())
    assert config == {'norm_cfg': {'type': 'BN', 'eps': 1e-5}}


def test_synchronised_and_epsilonless_norms_train_in_one_process() -> None:
    config = small('retinanet_r50_fpn_1x_coco')
    config.model.backbone.norm_cfg = {'type': 'SyncBN', 'requires_grad': True, 'eps': 0}
    model: Any = build_detector(config)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.eps > 0 for norm in norms)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert model.train().extract_feat(torch.randn(2, 3, 64, 64))[0].isfinite().all()


def test_what_cannot_be_built_is_one_line() -> None:
    config = small('retinanet_r50_fpn_1x_coco')
    config.model.backbone.type = 'NoSuchNet'
    with pytest.raises(InputError, match=r'cannot be built: KeyError: .*NoSuchNet') as caught:
        build_detector(config)
    assert '\n' not in str(caught.value)
    # Its language model, of which nothing is fetched; or what that needs is not installed.
    with pytest.raises(MtpdError, match=r'transformers is not installed|loads huggingface'):
        build_detector(load_config('glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365'))


def test_the_config_of_a_built_in_teacher_is_found_in_the_zoo(tmp_path: Path) -> None:
    own = tmp_path / 'teacher.py'
    own.touch()
    for given, expected in [
        ('configs/gfl/gfl_r101_fpn_ms-2x_coco.py', configs_folder() / 'gfl' / 'gfl_r101_fpn_ms-2x_coco.py'),
        (str(own), own),
    ]:
        config = {'teacher_config': given}
        make_buildable(config, zoo_folder=configs_folder())
        assert config['teacher_config'] == str(expected)
        assert expected.is_file()
