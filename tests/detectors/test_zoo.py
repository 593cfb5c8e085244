"""The zoo's names, aliases and files, as the installed mmdet carries them."""

import re
from pathlib import Path

import pytest

from mtpd.detectors.of_mmdet import zoo
from mtpd.errors import InputError


def test_every_alias_is_a_coco_model_with_weights() -> None:
    for alias, name in zoo.ALIASES.items():
        model = zoo.resolve(alias)
        assert model.name == name, alias
        assert model.on_coco, alias
        assert model.weights is not None, alias
        assert model.weights.startswith('https://'), alias
        assert model.config.is_file(), alias


def test_every_listed_model_has_its_config() -> None:
    models = zoo.models()
    assert len(models) > 580
    for model in models.values():
        assert model.config.is_absolute()
        assert model.config.is_file(), model.name
        assert model.weights is None or re.match(r'https?://', model.weights)


@pytest.mark.parametrize(
    ('name', 'path'),
    [
        ('faster-rcnn_r50_fpn_gn_ws-all_1x_coco', 'gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py'),
        ('mask-rcnn_r50_fpn_albu-1x_coco', 'albu_example/mask-rcnn_r50_fpn_albu-1x_coco.py'),
        ('ddq-detr-5scale_r50_8xb2-12e_coco', 'ddq/ddq-detr-5scale_r50_8xb2-12e_coco.py'),
    ],
)
def test_paths_that_the_metafiles_spell_wrong(name: str, path: str) -> None:
    assert zoo.resolve(name).config == zoo.configs_folder() / path


def test_config_names_find_their_models() -> None:
    """YOLOX's metafile names its models differently from their configs; YOLOX-nano is in no metafile."""
    assert zoo.resolve('yolox_s_8xb8-300e_coco') is zoo.resolve('yolox_s')
    nano = zoo.resolve('yolox_nano_8xb8-300e_coco')
    assert nano.weights is None
    assert nano.config.parent.name == 'yolox'


def test_models_with_several_weight_files_have_none() -> None:
    model = zoo.resolve('deepsort_faster-rcnn_r50_fpn_8xb2-4e_mot17halftrain_test-mot17halfval')
    assert model.weights is None
    assert not model.on_coco


def test_an_unknown_name_names_similar_ones() -> None:
    assert zoo.find_model('retinanet_r50_fpn_1x_cocoo') is None
    with pytest.raises(InputError, match=r'did you mean .*retinanet_r50_fpn_1x_coco'):
        zoo.resolve('retinanet_r50_fpn_1x_cocoo')
    with pytest.raises(InputError, match=r'aliases are .*swin_l'):
        zoo.resolve('%%%')


def test_metafiles_of_every_family_were_read() -> None:
    families = {model.config.parent.name for model in zoo.models().values()}
    metafiles = {path.parent.name for path in Path(zoo.configs_folder()).glob('*/metafile.yml')}
    assert families == metafiles
