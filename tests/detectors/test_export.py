"""mmdet's own `init_detector` runs an exported student and predicts the very boxes of our evaluation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from mtpd.data.images import read_image
from mtpd.detectors.of_mmdet.config_input import read_preprocessing
from mtpd.detectors.of_mmdet.config_output import export_config
from mtpd.detectors.of_mmdet.detector import MmdetDetector
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored
from mtpd.detectors.of_mmdet.zoo import find_model
from mtpd.detectors.preprocessing import Preprocessing, at_geometry
from mtpd.detectors.results import coco_results
from mtpd.detectors.samples import collate, make_sample
from mtpd.geometry import Geometry, Size

# mmengine 0.10.7 on Python 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:'pkgutil.find_loader' is deprecated:DeprecationWarning")

CPU = torch.device('cpu')
TINY = str(Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py')
CLASSES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')
IMAGENET = {'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375]}
SIZES: tuple[Size, ...] = ((128, 128), (96, 128), (128, 80), (50, 127))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with known_warnings_ignored():
        yield


@pytest.fixture(scope='module')
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Images of several sizes, smooth enough for detections to differ."""
    folder = tmp_path_factory.mktemp('images')
    paths = []
    for height, width in SIZES:
        noise = np.random.default_rng(height + width).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        paths.append(folder / f'{height}x{width}.png')
        cv2.imwrite(str(paths[-1]), cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST))
    return paths


def save(folder: Path, model: torch.nn.Module) -> Path:
    path = folder / 'student.pth'
    torch.save({'state_dict': model.state_dict(), 'meta': {'dataset_meta': {'classes': CLASSES}}}, path)
    return path


def assert_same_predictions(
    model: Any, *, preprocessing: Preprocessing, config: Path, checkpoint: Path, images: list[Path]
) -> Any:
    """Returns the detector that mmdet built."""
    from mmdet.apis import inference_detector, init_detector
    from mmengine.runner import load_checkpoint

    detector = init_detector(str(config), str(checkpoint), device='cpu')
    load_checkpoint(detector, str(checkpoint), strict=True)
    model.eval()
    total = 0
    for path in images:
        sample = make_sample(read_image(path), image_id=1, geometry=preprocessing.geometry, view='plain')
        batch = collate([sample], preprocessing=preprocessing, device=CPU)
        found = MmdetDetector('', model, preprocessing).predict(batch, [sample])
        ours, _ = coco_results(found, [1], category_ids=range(80))
        theirs = inference_detector(detector, str(path)).pred_instances
        boxes = torch.tensor([one['bbox'] for one in ours]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, theirs.bboxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(torch.tensor([one['score'] for one in ours]), theirs.scores, rtol=0, atol=1e-6)
        assert [one['category_id'] for one in ours] == theirs.labels.tolist()
        total += len(ours)
    assert total > 20 * len(images)
    return detector


@pytest.mark.parametrize(
    ('preprocessor', 'geometry'),
    [
        ({}, Geometry((128, 128))),
        (IMAGENET | {'bgr_to_rgb': True}, Geometry((150, 110))),
        (IMAGENET | {'bgr_to_rgb': True, 'pad_value': 3}, Geometry((96, 96), keep_ratio=False, pad_divisor=64)),
        ({'mean': None, 'std': None, 'bgr_to_rgb': False, 'pad_value': 114}, Geometry((96, 96), pad_size=(96, 96))),
        (IMAGENET | {'bgr_to_rgb': True}, Geometry((96, 96), pad_size=(96, 96))),
        (IMAGENET | {'bgr_to_rgb': True}, Geometry((120, 90), pad_size=(100, 125))),
    ],
    ids=['demo', 'divisor', 'stretched', 'yolox letterbox', 'imagenet letterbox', 'oblong'],
)
def test_geometries_and_normalisations(
    preprocessor: Mapping[str, Any], geometry: Geometry, images: list[Path], tmp_path: Path
) -> None:
    config = load_config(TINY)
    config.merge_from_dict({'model.test_cfg.score_thr': 0.0, 'model.data_preprocessor': preprocessor})
    preprocessing = at_geometry(read_preprocessing(config), geometry)
    check_export(config, preprocessing, images=images, folder=tmp_path)


def test_a_pipeline_that_pads_with_grey_to_a_divisor(images: list[Path], tmp_path: Path) -> None:
    """Grey before the normalisation is another number for each channel after it."""
    config = load_config(TINY)
    config.merge_from_dict({'model.test_cfg.score_thr': 0.0, 'model.data_preprocessor': IMAGENET})
    pad = {'type': 'Pad', 'size_divisor': 32, 'pad_val': {'img': (114, 114, 114)}}
    config.test_pipeline = [*config.test_pipeline[:2], pad, *config.test_pipeline[2:]]
    preprocessing = read_preprocessing(config)
    assert len(set(preprocessing.normalisation.padding)) == 3
    check_export(config, at_geometry(preprocessing, preprocessing.geometry), images=images, folder=tmp_path)


def check_export(config: Any, preprocessing: Preprocessing, *, images: list[Path], folder: Path) -> None:
    torch.manual_seed(0)
    model = build_detector(config, num_classes=6)
    path = folder / 'student_config.py'
    text = export_config(config, preprocessing=preprocessing, classes=CLASSES, has_masks=False, evaluated_on=None)
    path.write_text(text)
    # The exported config says the same as what it was made from.
    reread = read_preprocessing(load_config(str(path))).geometry
    assert all(reread.padded(size) == preprocessing.geometry.padded(size) for size in SIZES)
    detector = assert_same_predictions(
        model, preprocessing=preprocessing, config=path, checkpoint=save(folder, model), images=images
    )
    assert detector.dataset_meta['classes'] == CLASSES


@pytest.mark.parametrize('name', ['yolox_nano_8xb8-300e_coco', 'retinanet_r18_fpn_1x_coco'])
def test_a_student_of_cocos_classes_runs_with_the_plain_zoo_config(
    name: str, images: list[Path], tmp_path: Path
) -> None:
    entry = find_model(name)
    assert entry is not None
    config = load_config(name)
    torch.manual_seed(0)
    model = build_detector(config, num_classes=80)
    with torch.no_grad():  # Detectors start by finding nothing: raise the scores of some anchors above the threshold.
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith('bbox_head') and parameter_name.endswith('bias'):
                parameter.fill_(-2.94 if 'retina_cls' in parameter_name else 0.0)
    preprocessing = read_preprocessing(config)
    assert_same_predictions(
        model,
        preprocessing=at_geometry(preprocessing, preprocessing.geometry),
        config=entry.config,
        checkpoint=save(tmp_path, model),
        images=images[1:2],
    )


def test_only_what_is_needed_is_exported(tmp_path: Path) -> None:
    config = load_config('mask-rcnn_r50_fpn_1x_coco')
    config.model.backbone.norm_cfg.type = 'MMSyncBN'
    preprocessing = read_preprocessing(config)
    before = config.pretty_text
    text = export_config(
        config,
        preprocessing=preprocessing,
        classes=CLASSES,
        has_masks=True,
        evaluated_on=(tmp_path / 'val', tmp_path / 'val.json'),
    )
    assert config.pretty_text == before
    (tmp_path / 'exported.py').write_text(text)
    exported = load_config(str(tmp_path / 'exported.py'))
    assert set(exported) == {'default_scope', 'model', 'test_cfg', 'test_dataloader', 'test_evaluator'}
    assert exported.model.backbone.norm_cfg.type == 'BN'  # As it was trained; the other needs several processes.
    head = exported.model.roi_head
    assert (head.bbox_head.num_classes, head.mask_head.num_classes) == (6, 6)
    assert exported.test_evaluator == {
        'type': 'CocoMetric', 'ann_file': str(tmp_path / 'val.json'), 'metric': ['bbox', 'segm']
    }  # fmt: skip
    assert exported.test_dataloader.dataset.data_prefix == {'img': str(tmp_path / 'val')}
    assert read_preprocessing(exported) == preprocessing
