"""Models of mmdet's zoo as teachers: their feature levels with random weights, and network inputs equal to mmdet's own.

    MTPD_STRESS_ZOO=all python -m pytest tests/stress/test_zoo.py -n 2 -rPx -k features     one model of each family
    MTPD_STRESS_ZOO=every python -m pytest tests/stress/test_zoo.py -n 2 -rPx -k features   every model
    MTPD_STRESS_ZOO=all python -m pytest tests/stress/test_zoo.py -n 2 -rx -k input         every config

Models are those that have weights for COCO; configs are all in the wheel of mmdet that have a detector. The reference
of inputs is mmdet's own test pipeline, without the steps that read annotations, and data preprocessor. MTPD_STRESS_ZOO
can also name families, separated by commas. The last line counts what is right as passed, and as xfailed what is
refused, with its reason.
"""

import copy
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch import Tensor

from mtpd.data.images import read_image
from mtpd.detectors.of_mmdet.config_input import read_preprocessing
from mtpd.detectors.of_mmdet.features import probe_levels
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.of_mmdet.pipeline_steps import find_steps, plain_type
from mtpd.detectors.of_mmdet.zoo import configs_folder, models
from mtpd.detectors.preprocessing import normalise
from mtpd.detectors.samples import image_view
from mtpd.errors import MtpdError
from mtpd.geometry import Size
from stress.zoo import selected

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('default')]
# SSD pools the smallest away and is made for 300; the last is for models that need more.
INPUT_SIZES: tuple[Size, ...] = ((256, 256), (300, 300), (512, 512))
IMAGE_SIZES: tuple[Size, ...] = ((97, 131), (151, 99))
TOLERANCE = 1e-7  # of normalised values, which are of the order of 1; whole pixel values are equal


def teachers() -> list[str]:
    """Models of the selected families, the first of each or every one."""
    if os.environ.get('MTPD_STRESS_ZOO', '') in ('', 'retinanet'):
        return ['retinanet_r18_fpn_1x_coco']  # as below, without reading the zoo
    found = [model for model in models().values() if model.on_coco and model.weights is not None]
    if os.environ['MTPD_STRESS_ZOO'] == 'every':
        return [model.name for model in found]
    first = {model.config.parent.name: model.name for model in reversed(found)}
    return [first[family] for family in selected(list(first))]


def configs() -> list[str]:
    """Every config file of the selected families that is no base of others, relative to the wheel's folder."""
    paths = [path.relative_to(configs_folder()) for path in sorted(configs_folder().rglob('*.py'))]
    families = selected(sorted({path.parts[0] for path in paths}), 'yolox')
    return [str(path) for path in paths if path.parts[0] in families and '_base_' not in path.parts]


@pytest.mark.parametrize('name', teachers())
def test_features(name: str) -> None:
    try:
        model = build_detector(load_config(name), init_weights=False)
    except MtpdError as error:
        pytest.xfail(str(error))
    for size in INPUT_SIZES:
        try:
            levels = probe_levels(model, input_size=size)
        except Exception:  # whatever a model raises that needs a larger input
            if size == INPUT_SIZES[-1]:
                raise
        else:
            print(', '.join(f'{level.name} {level.stride} px {level.channels} ch' for level in levels), 'of', size)
            return


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A landscape and a portrait image of odd sizes."""
    paths = [tmp_path_factory.mktemp('images') / f'{height}x{width}.png' for height, width in IMAGE_SIZES]
    for path, size in zip(paths, IMAGE_SIZES, strict=True):
        cv2.imwrite(str(path), np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8))
    return paths


@pytest.mark.parametrize('name', configs())
def test_input(name: str, images: list[Path]) -> None:
    try:
        config = load_config(str(configs_folder() / name))
        model = config.model
        if not {'data_preprocessor', 'backbone'} & model.keys() and 'data_preprocessor' not in config:
            pytest.skip('not the config of a detector')
        found = read_preprocessing(config)
    except MtpdError as error:
        # Pieces of configs, and configs whose base files are not in the wheel, are no configs of detectors.
        if 'has no `model`' in str(error) or 'FileNotFoundError' in str(error):
            pytest.skip('a piece of a config')
        pytest.xfail(str(error))
    for file in images:
        pixels = read_image(file)
        view = image_view(pixels, geometry=found.geometry, view='plain')
        result = normalise([view], padded=found.geometry.padded(pixels.shape[:2]), normalisation=found.normalisation)
        expected = mmdet_input(config, file)
        assert result.shape == expected.shape
        assert float((result - expected).abs().max()) <= TOLERANCE


def mmdet_input(config: Any, path: Path) -> Tensor:
    """What mmdet's test pipeline and data preprocessor make of an image file."""
    from mmdet.registry import MODELS
    from mmengine.dataset import Compose

    steps = []
    for entry in find_steps(config):
        if entry.type.startswith('Load') and entry.type != 'LoadImageFromFile':
            continue
        step = dict(entry.values)
        if entry.type == 'LoadImageFromFile':
            step['backend_args'] = None  # One config names a server.
        if entry.type == 'PackDetInputs':
            step['meta_keys'] = ('img_path', 'ori_shape', 'img_shape')
        steps.append(step)
    packed = Compose(steps)({'img_path': str(path), 'img_id': 1})
    preprocessor = copy.deepcopy(config.model.get('data_preprocessor') or config.data_preprocessor)
    if plain_type(preprocessor['type']) == 'MultiBranchDataPreprocessor':
        preprocessor = preprocessor['data_preprocessor']
    if plain_type(preprocessor['type']) == 'BoxInstDataPreprocessor':
        # It differs in training alone, and needs a package for that.
        names = ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor')
        preprocessor = {'type': 'DetDataPreprocessor', **{name: preprocessor[name] for name in names}}
    preprocessor.pop('batch_augments', None)
    data = MODELS.build(preprocessor)({'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}, False)
    inputs: Tensor = data['inputs']
    return inputs
