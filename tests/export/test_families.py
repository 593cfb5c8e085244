"""An exported file of each family finds what its detector finds, in ONNX Runtime and as a graph of PyTorch.

python -m pytest tests/export/test_families.py
MTPD_STRESS_ZOO=all python -m pytest tests/export/test_families.py      # all students of torchvision too
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lively import enliven

from mtpd.data.images import read_image
from mtpd.detectors.detector import Detector
from mtpd.detectors.references import define_detector
from mtpd.detectors.samples import Sample, make_sample
from mtpd.errors import InputError
from mtpd.export.comparison import compare
from mtpd.export.exported import ExportedDetector, batch_of, open_onnx, open_torch
from mtpd.export.formats import OPSET, onnx_bytes, recorded, torch_bytes
from mtpd.export.program import Program
from mtpd.export.record import ExportRecord, input_geometry
from tiny_hf import make_folder

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'demo'
SMALL = (320, 192)
# Reference -> scale of its images; None: its own size.
DETECTORS: dict[str, tuple[int, int] | None] = {
    str(CONFIGS / 'faster_rcnn_tiny.py'): (192, 128),
    **dict.fromkeys(
        (
            'retinanet_r18_fpn_1x_coco', 'fcos_r50-caffe_fpn_gn-head_1x_coco', 'atss_r50_fpn_1x_coco',
            'gfl_r50_fpn_1x_coco', 'reppoints-moment_r50_fpn_1x_coco', 'faster-rcnn_r50_fpn_1x_coco',
            'mask-rcnn_r50_fpn_1x_coco', 'torchvision:retinanet_resnet50_fpn', 'torchvision:retinanet_resnet50_fpn_v2',
            'torchvision:fcos_resnet50_fpn', 'torchvision:fasterrcnn_resnet50_fpn',
            'torchvision:fasterrcnn_resnet50_fpn_v2', 'torchvision:fasterrcnn_mobilenet_v3_large_fpn',
            'torchvision:fasterrcnn_mobilenet_v3_large_320_fpn', 'torchvision:maskrcnn_resnet50_fpn',
            'torchvision:maskrcnn_resnet50_fpn_v2',
        ),
        SMALL,
    ),
    **dict.fromkeys(
        (
            'rtmdet_tiny_8xb32-300e_coco', 'yolox_tiny_8xb8-300e_coco', 'torchvision:ssd300_vgg16',
            'torchvision:ssdlite320_mobilenet_v3_large',
        )
    ),
}  # fmt: skip
# Like others of the list; tried with all names of the zoo.
MORE = (
    'faster-rcnn_r50_fpn_1x_coco', 'torchvision:retinanet_resnet50_fpn', 'torchvision:fasterrcnn_resnet50_fpn',
    'torchvision:fasterrcnn_resnet50_fpn_v2', 'torchvision:fasterrcnn_mobilenet_v3_large_fpn',
    'torchvision:maskrcnn_resnet50_fpn',
)  # fmt: skip
TRIED = [one for one in DETECTORS if one not in MORE or os.environ.get('MTPD_STRESS_ZOO') == 'all']
MOBILENET = """
_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='MobileNetV2', out_indices=(1, 2, 4, 6), init_cfg=None),
    neck=dict(in_channels=[24, 32, 96, 320]),
)
"""


def images(real: Path | None) -> list[np.ndarray]:
    """Three images of two sizes: real ones where they are there, else noise of several scales."""
    if real is not None:
        files = sorted((real / 'coco_mini' / 'val2017').iterdir())[:3]
        return [read_image(path) for path in files]
    generator = np.random.default_rng(0)
    found = []
    for rows, columns in ((12, 18), (18, 12), (12, 18)):
        coarse = generator.normal(128, 60, (rows, columns, 3)).repeat(16, 0).repeat(16, 1)
        # Fine noise, so that no two places have nearly equal scores, whose order is left to rounding.
        found.append((coarse + generator.normal(0, 20, coarse.shape)).clip(0, 255).astype(np.uint8))
    return found


def built(
    reference: str,
    scale: tuple[int, int] | None,
    pictures: Sequence[np.ndarray],
    changes: Mapping[str, object] | None = None,
) -> tuple[Detector, list[Sample]]:
    """A lively detector at the geometry of an export, and samples."""
    torch.manual_seed(0)
    definition = define_detector(reference, changes)
    preprocessing, _ = definition.preprocessing(scale=scale)
    preprocessing = replace(preprocessing, geometry=input_geometry(preprocessing.geometry, None))
    detector = definition.build(preprocessing)
    samples = [
        make_sample(one, image_id=number, geometry=preprocessing.geometry, view='plain')
        for number, one in enumerate(pictures)
    ]
    return enliven(detector, samples[0]), samples


def record_of(detector: Detector, *, batch: int | None = None) -> ExportRecord:
    network, geometry = detector.exportable(), detector.preprocessing.geometry
    is_fixed = not geometry.keep_ratio or geometry.pad_size is not None
    return ExportRecord(
        mtpd='0',
        detector=detector.name,
        checkpoint_sha256='0' * 64,
        classes=tuple(f'class{number}' for number in range(detector.num_classes or 0)),
        geometry=geometry,
        normalisation=detector.preprocessing.normalisation,
        size=geometry.padded((1, 1)) if is_fixed else None,
        batch=batch,
        num_detections=network.num_detections,
        opset=OPSET,
        paste=network.paste,
    )


def require_same(reference: str, scale: tuple[int, int] | None, real: Path | None, *, with_torch: bool = True) -> None:
    """In batches of one image and of two whose sizes differ."""
    # YOLOX takes the best class of a place, and random ones tie at a score of 1; test_a_real_teacher has 80.
    changes = {'bbox_head': {'num_classes': 1}} if 'yolox' in reference else None
    detector, samples = built(reference, scale, images(real), changes)
    network, record = detector.exportable(), record_of(detector)
    program = Program(network, detector.preprocessing)
    example = [torch.from_numpy(one) for one in batch_of(samples[:2], record=record, name='')]
    graph = recorded(program, example, batch=True, size=record.size is None)
    expected = [*detector.find(samples[:1]), *detector.find(samples[1:])]
    assert sum(len(one.scores) for one in expected) > 5
    onnx = onnx_bytes(graph, example, record, inputs=program.input_names, outputs=program.output_names)
    files = [open_onnx(onnx, name='file')]
    if with_torch:
        files.append(open_torch(torch_bytes(graph, record), name='file'))
    for exported in files:
        assert exported.record == record
        found = [*exported.find(samples[:1]), *exported.find(samples[1:])]
        comparison = compare(expected, found, iou_threshold=network.iou_threshold, limit=network.num_detections)
        assert comparison.failure() is None
        # YOLOX has no limit of its own, so that its list goes on.
        assert comparison.num_rounded <= 6 or 'yolox' in reference
        assert (expected[0].masks is None) == (found[0].masks is None)


@pytest.fixture(scope='module')
def real() -> Path | None:
    """The folder of real images; None: there is none, and noise does."""
    folder = Path(os.environ.get('MTPD_REAL_DATA', CONFIGS.parents[2] / 'shared' / 'real'))
    return folder if (folder / 'coco_mini').is_dir() else None


@pytest.mark.parametrize(
    'model_type', ['rt_detr_v2', *(pytest.param(one, marks=pytest.mark.slow) for one in ('rt_detr', 'd_fine'))]
)
def test_transformers(model_type: str, tmp_path: Path) -> None:
    require_same(f'hf:{make_folder(tmp_path / model_type, model_type)}', None, None)


@pytest.mark.slow
@pytest.mark.parametrize('reference', TRIED, ids=lambda one: Path(one).stem)
def test_detectors(reference: str, real: Path | None) -> None:
    # The graph is the same; translating it for PyTorch takes as long again.
    is_small = any(word in reference for word in ('tiny', 'retinanet_r18', 'ssdlite'))
    require_same(reference, DETECTORS[reference], real, with_torch=is_small)


@pytest.mark.slow
def test_mobilenet(tmp_path: Path, real: Path | None) -> None:
    config = tmp_path / 'mobilenet.py'
    config.write_text(MOBILENET)
    require_same(str(config), SMALL, real)


@pytest.mark.parametrize(
    ('reference', 'words'),
    [
        ('cascade-rcnn_r50_fpn_1x_coco', 'CascadeRCNN has no export; the families of mmdet that have one are ATSS,'),
        ('tood_r50_fpn_1x_coco', 'TOOD has no export'),
        ('detr_r50_8xb2-150e_coco', 'DETR has no export'),
    ],
)
def test_other_families_are_refused_by_name(reference: str, words: str) -> None:
    definition = define_detector(reference)
    detector = definition.build(definition.preprocessing()[0], with_levels=False)
    with pytest.raises(InputError, match=words):
        detector.exportable()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'nms': {'type': 'soft_nms'}}, 'test_cfg.nms is .*soft_nms.* needs greedy suppression'),
        ({'min_bbox_size': 4}, 'test_cfg.min_bbox_size is 4, but an export needs 0'),
        ({'nms_pre': -1}, 'test_cfg.nms_pre is -1, but an export needs a number above 0'),
        ({'with_nms': False}, 'test_cfg.with_nms is not a setting that an export understands'),
    ],
)
def test_settings_that_are_not_exported_are_refused(changes: dict[str, object], words: str) -> None:
    definition = define_detector(str(CONFIGS / 'retinanet_tiny.py'), {'test_cfg': changes})
    detector = definition.build(definition.preprocessing()[0], with_levels=False)
    with pytest.raises(InputError, match=words):
        detector.exportable()


@pytest.mark.parametrize(
    ('config', 'changes'),
    [
        ('retinanet_tiny', {'test_cfg': {'nms': {'class_agnostic': True}}}),
        ('retinanet_tiny', {'bbox_head': {'loss_cls': {'_delete_': True, 'type': 'CrossEntropyLoss'}}}),
        ('retinanet_tiny', {'test_cfg': {'score_thr': 0.3, 'max_per_img': 7, 'nms_pre': 20}}),
        ('faster_rcnn_tiny', {'test_cfg': {'rcnn': {'nms': {'class_agnostic': True}}}}),
        ('faster_rcnn_tiny', {'test_cfg': {'rcnn': {'score_thr': 0.2}, 'rpn': {'max_per_img': 9}}}),
        ('faster_rcnn_tiny', {'roi_head': {'bbox_head': {'reg_class_agnostic': True}}}),
    ],
)
def test_settings_that_change_the_boxes(config: str, changes: dict[str, object]) -> None:
    """The graph before it is recorded."""
    detector, samples = built(str(CONFIGS / f'{config}.py'), (192, 128), images(None), changes)
    network = detector.exportable()
    program = Program(network, detector.preprocessing).eval()

    @torch.no_grad()
    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return [one.numpy() for one in program(torch.from_numpy(images), torch.from_numpy(sizes))]

    found = ExportedDetector('graph', record_of(detector), run).find(samples)
    expected = detector.find(samples)
    assert sum(len(one.scores) for one in expected) > 5
    assert compare(expected, found, iou_threshold=0.5, limit=network.num_detections).failure() is None


@pytest.mark.slow
def test_a_fixed_batch_is_filled_up() -> None:
    detector, samples = built(str(CONFIGS / 'retinanet_tiny.py'), (192, 128), images(None))
    record = record_of(detector, batch=2)
    program = Program(detector.exportable(), detector.preprocessing)
    example = [torch.from_numpy(one) for one in batch_of(samples[:2], record=record, name='')]
    graph = recorded(program, example, batch=False, size=True)
    exported = open_onnx(
        onnx_bytes(graph, example, record, inputs=program.input_names, outputs=program.output_names), name='file'
    )
    found, expected = exported.find(samples), [*detector.find(samples[:2]), *detector.find(samples[2:])]
    assert len(found) == 3
    assert compare(expected, found, iou_threshold=0.5, limit=record.num_detections).failure() is None


def test_pixels_outside_of_an_image_do_not_count() -> None:
    detector, samples = built(str(CONFIGS / 'retinanet_tiny.py'), (192, 128), images(None))
    program = Program(detector.exportable(), detector.preprocessing).eval()
    batch, sizes = (torch.from_numpy(one) for one in batch_of(samples[:2], record=record_of(detector), name=''))
    assert sizes[0].tolist() != sizes[1].tolist()
    other = batch.clone()
    other[0, int(sizes[0, 0]) :] = 200
    other[1, :, int(sizes[1, 1]) :] = 200
    with torch.no_grad():
        for one, two in zip(program(batch, sizes), program(other, sizes), strict=True):
            assert torch.equal(one, two)
