"""What a config says about its input is understood as mmdet understands it, or refused with step, key and value."""

import copy
import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpd.data.images import read_image
from mtpd.detectors.of_mmdet.config_input import read_normalisation, read_preprocessing
from mtpd.detectors.of_mmdet.config_output import export_config
from mtpd.detectors.of_mmdet.models import load_config
from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored, prepare
from mtpd.detectors.preprocessing import PROBE_SIZE, Preprocessing, at_geometry, normalise, probe_size
from mtpd.detectors.samples import image_view
from mtpd.errors import InputError, MtpdError
from mtpd.geometry import Geometry

IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
GREY = {'img': (114, 114, 114)}
LOAD, PACK = {'type': 'LoadImageFromFile'}, {'type': 'PackDetInputs', 'meta_keys': ('img_shape',)}
RESIZE = {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True}
DIVISOR = {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}
NORMALIZE = {'type': 'Normalize', **IMAGENET}


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = []
    for height, width in ((61, 87), (90, 53)):
        paths.append(tmp_path_factory.mktemp('images') / f'{height}x{width}.png')
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(paths[-1]), pixels)
    return paths


def config_of(steps: Any, preprocessor: Any) -> Any:
    prepare()
    from mmengine.config import Config

    values = {
        'model': {'type': 'RetinaNet', 'data_preprocessor': preprocessor},
        'test_dataloader': {'dataset': {'pipeline': steps}},
    }
    return Config(copy.deepcopy(values), cfg_text='-', filename='mine.py')


def mmdets_input(config: Any, path: Path) -> torch.Tensor:
    from mmdet.registry import MODELS
    from mmengine.dataset import Compose

    with known_warnings_ignored():
        packed = Compose(config.test_dataloader.dataset.pipeline)({'img_path': str(path), 'img_id': 1})
        preprocessor = MODELS.build(copy.deepcopy(config.model.data_preprocessor))
        data = preprocessor({'inputs': [packed['inputs']], 'data_samples': [packed['data_samples']]}, False)
    inputs: torch.Tensor = data['inputs']
    return inputs


def our_input(found: Preprocessing, path: Path) -> torch.Tensor:
    pixels = read_image(path)
    view = image_view(pixels, geometry=found.geometry, view='plain')
    assert tuple(view.shape[1:]) == found.geometry.resized(pixels.shape[:2])
    return normalise([view], padded=found.geometry.padded(pixels.shape[:2]), normalisation=found.normalisation)


def assert_same(found: Preprocessing, config: Any, images: list[Path]) -> None:
    for path in images:
        ours, theirs = our_input(found, path), mmdets_input(config, path)
        assert ours.shape == theirs.shape
        assert float((ours - theirs).square().sum() / theirs.square().sum()) < 1e-12


@pytest.mark.parametrize(
    ('steps', 'preprocessor'),
    [
        ([LOAD, RESIZE, PACK], DIVISOR | IMAGENET | {'rgb_to_bgr': True, 'non_blocking': True}),
        ([LOAD, RESIZE, PACK], DIVISOR | {'mean': [100], 'std': [50.5], 'pad_value': -1.5}),
        ([LOAD, RESIZE | {'interpolation': 'nearest'}, PACK], DIVISOR),
        ([LOAD, RESIZE | {'interpolation': 'area'}, PACK], DIVISOR),
        ([LOAD, RESIZE | {'interpolation': 'bicubic', 'backend': 'pillow'}, PACK], DIVISOR),
        ([LOAD | {'to_float32': True}, RESIZE, PACK], DIVISOR | IMAGENET),
        ([LOAD, RESIZE | {'type': 'FixScaleResize'}, PACK], DIVISOR),
        ([LOAD, RESIZE | {'type': 'FixScaleResize', 'keep_ratio': False}, PACK], DIVISOR),
        ([LOAD, RESIZE | {'scale': 70}, PACK], DIVISOR),
        ([LOAD, {'type': 'Resize', 'scale': [70, 50]}, PACK], DIVISOR),
        ([LOAD, RESIZE, {'type': 'Pad', 'pad_to_square': True, 'pad_val': GREY}, PACK], DIVISOR | {'pad_value': 114}),
        ([LOAD, RESIZE, {'type': 'Pad', 'pad_to_square': True, 'size_divisor': 64, 'pad_val': 9}, PACK], DIVISOR),
        (
            [LOAD, RESIZE | {'scale': 70}, {'type': 'Pad', 'pad_to_square': True, 'size_divisor': 64}, PACK],
            DIVISOR | {'pad_value': 3},
        ),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 64, 'pad_val': {'img': (9, 8, 7)}}, PACK], DIVISOR | IMAGENET),
        ([LOAD, RESIZE, {'type': 'Pad', 'size': (128, 96), 'pad_val': GREY}, PACK], DIVISOR | {'bgr_to_rgb': True}),
        ([LOAD, RESIZE, NORMALIZE, {'type': 'Pad', 'size_divisor': 32}, PACK], DIVISOR),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 32, 'pad_val': 7}, NORMALIZE, PACK], DIVISOR),
        ([LOAD, RESIZE, {'type': 'RandomFlip', 'prob': 0.0}, PACK], DIVISOR),
        ([{'type': 'mmcv.LoadImageFromFile'}, RESIZE | {'type': 'mmdet.Resize'}, PACK], DIVISOR | {'_scope_': 'mmdet'}),
    ],
)  # fmt: skip
def test_inputs_are_mmdets_and_those_of_the_exported_config(
    steps: Any, preprocessor: Mapping[str, Any], images: list[Path]
) -> None:
    from mmengine.config import Config

    config = config_of(steps, preprocessor)
    found = read_preprocessing(config)
    assert_same(found, config, images)
    # What mmdet cannot do in its two ways is moved; what the student then gets is what its exported config gives.
    student = at_geometry(found, found.geometry)
    text = export_config(config, preprocessing=student, classes=['a'], has_masks=False, evaluated_on=None)
    assert_same(student, Config.fromstring(text, '.py'), images)


def test_steps_and_preprocessors_by_class(images: list[Path]) -> None:
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets.transforms import PackDetInputs, Resize
    from mmdet.models import DetDataPreprocessor

    steps = [{'type': LoadImageFromFile}, RESIZE | {'type': Resize}, PACK | {'type': PackDetInputs}]
    config = config_of(steps, DIVISOR | {'type': DetDataPreprocessor})
    plain = read_preprocessing(config_of([LOAD, RESIZE, PACK], DIVISOR))
    assert read_preprocessing(config) == plain
    path = RESIZE | {'type': 'mmdet.datasets.transforms.Resize'}
    assert read_preprocessing(config_of([LOAD, path, PACK], DIVISOR)) == plain

    class Resized(Resize):  # type: ignore[misc]
        pass

    with pytest.raises(InputError, match='Resized'):
        read_preprocessing(config_of([LOAD, RESIZE | {'type': Resized}, PACK], DIVISOR))


@pytest.mark.parametrize(
    ('steps', 'preprocessor', 'words'),
    [
        ([LOAD | {'color_type': 'grayscale'}, RESIZE], {}, 'LoadImageFromFile color_type grayscale'),
        ([LOAD | {'imdecode_backend': 'pillow'}, RESIZE], {}, 'LoadImageFromFile imdecode_backend pillow'),
        ([LOAD, RESIZE | {'scale_factor': 0.5}], {}, 'Resize scale_factor 0.5'),
        ([LOAD, {'type': 'Resize', 'img_scale': (9, 9)}], {}, 'Resize img_scale'),
        ([LOAD, RESIZE | {'scale': [96, 64]}], {}, 'Resize scale [96, 64]'),
        ([LOAD, RESIZE | {'scale': 96.0}], {}, 'Resize scale 96.0'),
        ([LOAD, RESIZE | {'scale': (0, 5)}], {}, 'Resize scale (0, 5)'),
        ([LOAD, RESIZE | {'keep_ratio': 'no'}], {}, "Resize keep_ratio 'no'"),
        ([LOAD, RESIZE | {'interpolation': 'box'}], {}, 'Resize interpolation box'),
        ([LOAD, RESIZE | {'sharpen': 1}], {}, 'Resize sharpen'),
        ([LOAD, RESIZE | {'_scope_': 'mine'}], {}, 'Resize _scope_ mine'),
        ([LOAD | {'to_float32': True}, RESIZE | {'backend': 'pillow'}], {}, 'Resize backend pillow'),
        ([LOAD, RESIZE, RESIZE], {}, 'Resize second'),
        ([LOAD, {'type': 'MultiScaleFlipAug', 'img_scale': (9, 9)}], {}, 'MultiScaleFlipAug 2'),
        ([LOAD | {'type': 'mmdet.LoadImageFromFile'}, RESIZE], {}, 'mmdet.LoadImageFromFile not a known class'),
        ([LOAD, {'type': 'Pad', 'size_divisor': 32}, RESIZE], {}, 'Resize order'),
        ([LOAD, NORMALIZE, RESIZE], {}, 'Resize order'),
        ([LOAD, RESIZE, {'type': 'CenterCrop', 'crop_size': 5}], {}, 'CenterCrop'),
        ([LOAD, RESIZE, {'type': 'RandomFlip', 'prob': 1.0}], {}, 'RandomFlip prob 1.0'),
        ([LOAD, RESIZE, {'type': 'RandomFlip'}], {}, 'RandomFlip prob'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size': 96}], {}, 'Pad size 96'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 32.0}], {}, 'Pad size_divisor 32.0'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 48}], {}, 'Pad size_divisor 48'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 32, 'padding_mode': 'edge'}], {}, 'Pad padding_mode edge'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 32, 'pad_val': {'img': 9.0}}], {}, 'Pad pad_val 9.0'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 32, 'pad_val': {'image': 9}}], {}, 'Pad pad_val image'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size_divisor': 32, 'pad_val': {'img': (9, 300, 9)}}], {}, 'Pad pad_val 300'),
        ([LOAD, RESIZE, {'type': 'Pad', 'size': (100, 70), 'pad_val': 9}], {}, 'Pad pad_size_divisor 32'),
        ([LOAD, RESIZE, {'type': 'Pad', 'pad_to_square': True, 'pad_val': 9}], {}, 'Pad pad_size_divisor 32'),
        ([LOAD, RESIZE, NORMALIZE], IMAGENET, 'data_preprocessor mean'),
        ([LOAD, RESIZE, NORMALIZE], {'bgr_to_rgb': True}, 'data_preprocessor bgr_to_rgb'),
        ([LOAD, RESIZE, 'Pad'], {}, 'step 3 Pad'),
        ('Resize', {}, 'test pipeline Resize'),
        ([LOAD, RESIZE], {'pad_size_divisor': None}, 'data_preprocessor pad_size_divisor None'),
        ([LOAD, RESIZE], {'mean': [1, 2, 3]}, 'data_preprocessor std'),
        ([LOAD, RESIZE], {'mean': [1, 2], 'std': [1, 2]}, 'data_preprocessor mean [1, 2]'),
        ([LOAD, RESIZE], {'mean': [1], 'std': [0]}, 'data_preprocessor std [0]'),
        ([LOAD, RESIZE], {'pad_value': '0'}, "data_preprocessor pad_value '0'"),
        ([LOAD, RESIZE], {'bgr_to_rgb': True, 'rgb_to_bgr': True}, 'data_preprocessor rgb_to_bgr'),
        ([LOAD, RESIZE], {'boxtype2tensor': False}, 'data_preprocessor boxtype2tensor'),
        ([LOAD, RESIZE], {'gamma': 2}, 'data_preprocessor gamma'),
        ([LOAD, RESIZE], {'type': 'TrackDataPreprocessor'}, 'data_preprocessor type TrackDataPreprocessor'),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(steps: Any, preprocessor: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_preprocessing(config_of(steps, {**DIVISOR, **preprocessor}))
    message = str(caught.value)
    assert '\n' not in message
    assert all(word in message for word in ('mine.py', *words.split()))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 130),
    st.floats(width=16),
    st.sampled_from(['', 'x', '32', 'nearest', 'pillow', 'constant', 'cv2', 'color']),
    st.tuples(st.integers(1, 130), st.integers(1, 130)),
    st.lists(st.one_of(st.integers(-1, 130), st.floats(0, 9)), max_size=4),
    st.fixed_dictionaries({'img': st.integers(-1, 260) | st.floats(0, 9) | st.tuples(*[st.integers(0, 9)] * 3)}),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=2),
)  # fmt: skip
KEYS = {
    0: ('to_float32', 'color_type', 'imdecode_backend', 'ignore_empty'),
    1: ('scale', 'scale_factor', 'keep_ratio', 'interpolation', 'backend', 'clip_object_border', 'img_scale'),
    2: ('size', 'size_divisor', 'pad_to_square', 'pad_val', 'padding_mode'),
    3: ('mean', 'std', 'pad_size_divisor', 'pad_value', 'bgr_to_rgb', 'rgb_to_bgr', 'boxtype2tensor', 'pad_mask'),
}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([(part, key) for part, keys in KEYS.items() for key in keys]), VALUES)
def test_any_value_is_read_as_mmdet_reads_it_or_refused_with_its_key(
    images: list[Path], place: tuple[int, str], value: Any
) -> None:
    part, key = place
    parts: list[dict[str, Any]] = [dict(LOAD), dict(RESIZE), {'type': 'Pad', 'size_divisor': 32}, dict(DIVISOR)]
    parts[part][key] = value
    config = config_of([*parts[:3], PACK], parts[3])
    try:
        found = read_preprocessing(config)
    except InputError as error:
        message = str(error)
    else:
        assert_same(found, config, images[:1])
        return
    assert 'mine.py' in message
    # Values that do not fit each other are told by either key.
    assert any(word in message for word in (key, ': size is', 'pad_size_divisor')) or key in (
        'mean',
        'std',
        'bgr_to_rgb',
    )


@pytest.mark.parametrize(
    ('dataloader', 'words'),
    [
        ([1], 'test_dataloader [1]'),
        ({'dataset': 5}, 'dataset 5'),
        ({'dataset': {'pipeline': [RESIZE], 'dataset': {'pipeline': [LOAD]}}}, 'wrapped pipeline'),
        ({'dataset': {'datasets': 5}}, 'datasets 5'),
        ({'dataset': {'datasets': [{'pipeline': [LOAD]}, {'pipeline': [RESIZE]}]}}, 'different pipelines'),
    ],
)
def test_odd_dataloaders_are_refused(dataloader: Any, words: str) -> None:
    config = config_of([LOAD], DIVISOR)
    config.test_dataloader = dataloader
    with pytest.raises(InputError) as caught:
        read_preprocessing(config)
    assert all(word in str(caught.value) for word in ('mine.py', *words.split()))


@pytest.mark.parametrize('dataloader', [None, {}, {'dataset': None}, {'dataset': {'datasets': [{'pipeline': None}]}}])
def test_without_a_dataloader_the_test_pipeline_counts(dataloader: Any) -> None:
    config = config_of([LOAD], DIVISOR)
    config.test_dataloader, config.test_pipeline = dataloader, [LOAD, RESIZE, PACK]
    assert read_preprocessing(config).geometry.scale == (96, 64)


def test_what_a_geometry_replaces_is_noted_and_the_rest_is_still_checked() -> None:
    crop = {'type': 'CenterCrop', 'crop_size': 9}
    config = config_of([LOAD, crop, PACK], DIVISOR | IMAGENET)
    normalisation, notes = read_normalisation(config, geometry=Geometry((9, 9)))
    assert normalisation.mean == tuple(IMAGENET['mean'])
    assert any('CenterCrop' in note for note in notes)
    other = config_of([LOAD, RESIZE | {'interpolation': 'area'}, PACK], DIVISOR)
    assert any('area' in note for note in read_normalisation(other, geometry=Geometry((9, 9)))[1])
    assert not read_normalisation(config_of([LOAD, RESIZE, PACK], DIVISOR), geometry=Geometry((9, 9)))[1]
    with pytest.raises(InputError, match='gamma'):
        read_normalisation(config_of([LOAD, RESIZE], DIVISOR | {'gamma': 2}), geometry=Geometry((9, 9)))


def test_levels_are_measured_on_sizes_that_the_network_takes() -> None:
    assert probe_size(Geometry((1333, 800))) == PROBE_SIZE
    assert all(side % 128 == 0 for side in probe_size(Geometry((1333, 800), pad_divisor=128)))
    assert len(set(probe_size(Geometry((1333, 800), pad_square=True)))) == 1
    assert probe_size(Geometry((224, 224), keep_ratio=False)) == (224, 224)


LAZY = """
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import PackDetInputs, Resize
from mmdet.models import RetinaNet, DetDataPreprocessor
model = dict(type=RetinaNet, data_preprocessor=dict(type=DetDataPreprocessor, pad_size_divisor=32))
resize = dict(type=Resize, scale=(96, 64), keep_ratio=True)
test_pipeline = [dict(type=LoadImageFromFile), resize, dict(type=PackDetInputs)]
"""


def test_a_pure_python_config(tmp_path: Path) -> None:
    path = tmp_path / 'lazy.py'
    path.write_text(LAZY)
    assert read_preprocessing(load_config(str(path))).geometry == Geometry((96, 64))
    path.write_text(LAZY.replace('PackDetInputs', 'PackNothing'))
    with pytest.raises(MtpdError, match=r'lazy\.py.*PackNothing'):
        load_config(str(path))


PLAIN = """
import os
model = dict(type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32))
test_pipeline = [dict(type='Resize', scale=(96, int(os.environ.get('NO_SUCH_SIDE', '64'))), keep_ratio=True)]
"""


def test_configs_that_import(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / 'imports.py'
    path.write_text(f'{PLAIN}custom_imports = dict(imports=["no_such_module"], allow_failed_imports=True)')
    assert read_preprocessing(load_config(str(path))).geometry == Geometry((96, 64))
    assert [one for one in ('imports.py', 'no_such_module') if one in caplog.text] == ['imports.py', 'no_such_module']
    # mmengine reads it as pure Python, where what is imported cannot be called.
    path.write_text(f'import numpy\nsides = numpy.array([1])\n{PLAIN}')
    with pytest.raises(InputError, match=r'imports\.py.*_base_ = \[\]'):
        load_config(str(path))
    path.write_text(f'_base_ = []\n{path.read_text()}')
    assert read_preprocessing(load_config(str(path))).geometry == Geometry((96, 64))


def test_a_preprocessor_beside_the_model_counts_where_the_model_says_nothing() -> None:
    config = config_of([LOAD, RESIZE, PACK], DIVISOR)
    config.data_preprocessor = config.model.pop('data_preprocessor')
    assert read_preprocessing(config).geometry.pad_divisor == 32
    config.model.data_preprocessor = None
    with pytest.raises(InputError, match='data_preprocessor is None'):
        read_preprocessing(config)


@pytest.mark.parametrize(
    'text',
    ['model = dict(', '_base_ = "no.py"', 'x = 1', 'model = [1]', 'model = dict(x=1)', 'raise SystemExit', '1 / 0'],
)  # fmt: skip
def test_broken_configs_are_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / 'broken.py'
    path.write_text(text)
    message = ''
    with warnings.catch_warnings():
        # mmengine leaves its temporary copy of such a file to the collector.
        warnings.simplefilter('ignore', ResourceWarning)
        try:
            load_config(str(path))
        except InputError as error:
            message = str(error)
        gc.collect()
    assert 'broken.py' in message
    assert '\n' not in message
