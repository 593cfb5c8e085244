"""Batches, losses and predictions against what mmdet's own pipeline, preprocessor and detectors give."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask
import pytest
import torch
from torch import Tensor

from mtpd.detectors.detector import Detections, Detector
from mtpd.detectors.of_mmdet.data_samples import data_samples
from mtpd.detectors.of_mmdet.family import define
from mtpd.detectors.of_mmdet.features import captured_maps
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.preprocessing import Normalisation, Preprocessing, at_geometry, padding_pixel, pads_pixels
from mtpd.detectors.results import coco_results
from mtpd.detectors.samples import Instance, Sample, View, collate, make_sample
from mtpd.geometry import Geometry

CPU = torch.device('cpu')
IMAGENET = Normalisation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), to_rgb=True)
DIVISOR = Geometry((96, 64))
LETTERBOX = Geometry((96, 96), pad_size=(96, 96))
TINY = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
BOXES = ((3.0, 5.0, 33.0, 41.0), (20.0, 10.0, 21.0, 11.0))
POLYGON = [[3.0, 5.0, 33.0, 5.0, 33.0, 41.0]]


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3)).astype(np.uint8)


def sample(
    height: int, width: int, *, geometry: Geometry, view: View = 'plain', with_masks: bool = False, crowd: bool = False
) -> Sample:
    """A random image with two objects, one of them a single pixel; with `crowd` a third that is to be ignored."""
    instances = [Instance(BOXES[0], 2, segmentation=POLYGON), Instance(BOXES[1], 0)]
    if crowd:
        instances.append(Instance((0.0, 0.0, width / 2, height / 2), 1, ignore=True))
    return make_sample(
        picture(height, width),
        image_id=height,
        geometry=geometry,
        view=view,
        instances=instances,
        with_masks=with_masks,
    )


def mmdets_batch(
    sizes: list[tuple[int, int]], *, preprocessing: Preprocessing, views: list[View]
) -> tuple[Tensor, list[Any]]:
    """The same images through mmdet: its transforms step by step, then its data preprocessor in training mode."""
    prepare()
    from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Pad, RandomFlip, Resize
    from mmdet.models.data_preprocessors import DetDataPreprocessor

    geometry, normalisation = preprocessing.geometry, preprocessing.normalisation
    packed = []
    for (height, width), view in zip(sizes, views, strict=True):
        results = {
            'img': picture(height, width), 'img_shape': (height, width), 'ori_shape': (height, width), 'img_id': height,
            'img_path': 'x.jpg',
            'instances': [
                {'bbox': list(BOXES[0]), 'bbox_label': 2, 'ignore_flag': 0, 'mask': POLYGON},
                {'bbox': list(BOXES[1]), 'bbox_label': 0, 'ignore_flag': 0, 'mask': [[20, 10, 21, 10, 21, 11, 20, 11]]},
            ],
        }  # fmt: skip
        results = LoadAnnotations(with_bbox=True, with_mask=True)(results)
        results = Resize(scale=geometry.scale, keep_ratio=geometry.keep_ratio)(results)
        results = RandomFlip(prob=float(view == 'flip'))(results)
        if geometry.pad_size is not None:
            results = Pad(size=geometry.pad_size[::-1], pad_val={'img': padding_pixel(normalisation)})(results)
        packed.append(PackDetInputs()(results))
    preprocessor = DetDataPreprocessor(
        mean=normalisation.mean, std=normalisation.std, bgr_to_rgb=normalisation.to_rgb, pad_mask=True,
        pad_size_divisor=geometry.pad_divisor, pad_value=0,
    )  # fmt: skip
    batch = {key: [one[key] for one in packed] for key in ('inputs', 'data_samples')}
    out = preprocessor(batch, training=True)
    return out['inputs'], out['data_samples']


def as_mmdet(samples: list[Sample], images: Tensor) -> list[Any]:
    padded = images.shape[2], images.shape[3]
    return data_samples(samples, preprocessing=Preprocessing(DIVISOR, IMAGENET), padded=padded, device=CPU)


@pytest.mark.parametrize(
    'preprocessing',
    [
        Preprocessing(DIVISOR, IMAGENET),
        at_geometry(Preprocessing(DIVISOR, IMAGENET), LETTERBOX),
        at_geometry(Preprocessing(DIVISOR, Normalisation(padding=(114.0, 114.0, 114.0))), LETTERBOX),
    ],
    ids=['divisor', 'letterbox', 'yolox'],
)
def test_a_batch_is_mmdets_batch(preprocessing: Preprocessing) -> None:
    sizes = [(96, 128), (80, 70), (64, 100)]
    views: list[View] = ['flip', 'plain', 'flip']
    samples = [
        sample(height, width, geometry=preprocessing.geometry, view=view, with_masks=True)
        for (height, width), view in zip(sizes, views, strict=True)
    ]
    got = collate(samples, preprocessing=preprocessing, device=CPU)
    want, wanted = mmdets_batch(sizes, preprocessing=preprocessing, views=views)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    padded = got.shape[2], got.shape[3]
    made = data_samples(samples, preprocessing=preprocessing, padded=padded, device=CPU)
    for mine, theirs in zip(made, wanted, strict=True):
        for key in ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape', 'scale_factor'):
            assert tuple(np.atleast_1d(getattr(mine, key))) == tuple(np.atleast_1d(getattr(theirs, key))), key
        assert isinstance(mine.gt_instances.bboxes, Tensor)
        assert torch.equal(mine.gt_instances.bboxes, theirs.gt_instances.bboxes)
        assert torch.equal(mine.gt_instances.labels, theirs.gt_instances.labels)
        assert np.array_equal(mine.gt_instances.masks.masks, theirs.gt_instances.masks.masks)


def test_boxes_and_masks_are_mirrored_with_the_image() -> None:
    plain = sample(96, 128, geometry=DIVISOR, view='plain', with_masks=True)
    flip = sample(96, 128, geometry=DIVISOR, view='flip', with_masks=True)
    assert torch.equal(flip.image, plain.image.flip(-1))
    (_, width), (mine, mirrored) = plain.resized, (plain.objects, flip.objects)
    x1, y1, x2, y2 = mine.boxes.unbind(-1)
    torch.testing.assert_close(mirrored.boxes, torch.stack([width - x2, y1, width - x1, y2], -1))
    assert mine.masks is not None
    assert mirrored.masks is not None
    assert torch.equal(mirrored.masks, mine.masks.flip(-1))
    assert mine.masks[0].any()


def test_ignored_boxes_stay_apart() -> None:
    one = sample(96, 128, geometry=DIVISOR, crowd=True)
    (made,) = data_samples([one], preprocessing=Preprocessing(DIVISOR, IMAGENET), padded=(64, 96), device=CPU)
    ignored = made.ignored_instances.bboxes
    assert isinstance(ignored, Tensor)
    torch.testing.assert_close(ignored, torch.tensor([[0.0, 0.0, 64 * 2 / 3, 48 * 2 / 3]]), atol=0.5, rtol=0)
    assert made.ignored_instances.labels.tolist() == [1]
    assert len(made.gt_instances) == 2


def tiny(changes: dict[str, Any] | None = None) -> Detector:
    torch.manual_seed(0)
    return define(str(TINY), changes or {}).build(Preprocessing(DIVISOR, IMAGENET))


def test_losses_are_those_that_mmdet_adds_up() -> None:
    detector = tiny()
    model: Any = detector.module
    samples = [sample(96, 128, geometry=DIVISOR, crowd=True), sample(64, 100, geometry=DIVISOR)]
    images = collate(samples, preprocessing=detector.preprocessing, device=CPU)
    losses = detector.losses(images, samples)
    total, _ = model.parse_losses(model.loss(images, as_mmdet(samples, images)))
    assert losses.keys() == {'loss_cls', 'loss_bbox'}
    torch.testing.assert_close(torch.stack(list(losses.values())).sum(), total)


def test_anchors_beyond_an_images_own_padding_train_nothing() -> None:
    """As in mmdet, where `pad_shape` is the image's own."""
    model: Any = tiny().module
    preprocessing = Preprocessing(DIVISOR, IMAGENET)
    batch = [sample(40, 40, geometry=Geometry((40, 40))), sample(96, 128, geometry=DIVISOR)]
    images = collate(batch, preprocessing=preprocessing, device=CPU)
    made = as_mmdet(batch, images)
    assert [one.pad_shape for one in made] == [(64, 64), (64, 96)]
    with captured_maps(model) as maps:
        model.loss(images, made)
    _, valid = model.bbox_head.get_anchors([one.shape[-2:] for one in maps], [one.metainfo for one in made], device=CPU)
    per_cell = valid[0][0].view(*maps[0].shape[-2:], -1)
    assert per_cell[:, : 64 // 4].all()
    assert not per_cell[:, 64 // 4 :].any()


def test_predictions_are_coco_records_in_original_pixels() -> None:
    detector = tiny({'test_cfg': {'score_thr': 0.0, 'max_per_img': 7}})
    model: Any = detector.module.eval()
    one = make_sample(picture(192, 256), image_id=9, geometry=DIVISOR, view='plain')
    images = collate([one], preprocessing=Preprocessing(DIVISOR, IMAGENET), device=CPU)
    boxes, masks = coco_results(detector.predict(images, [one]), [9], category_ids=[1, 2, 4, 7, 8, 11])
    assert masks == []
    assert len(boxes) == 7
    (raw,) = model.predict(images, as_mmdet([one], images), rescale=False)
    for record, box, score, label in zip(
        boxes, raw.pred_instances.bboxes, raw.pred_instances.scores, raw.pred_instances.labels, strict=True
    ):
        assert record['image_id'] == 9
        assert record['category_id'] == [1, 2, 4, 7, 8, 11][int(label)]
        assert record['score'] == pytest.approx(float(score))
        # 256 x 192 px were resized to 85 x 64.
        x1, y1, x2, y2 = (box * torch.tensor([256 / 85, 3, 256 / 85, 3])).tolist()
        assert record['bbox'] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)


def test_masks_are_run_length_codes_of_the_original_size() -> None:
    mask = np.zeros((2, 60, 90), dtype=bool)
    mask[0, 10:20, 30:55] = True
    mask[1, :, ::7] = True

    found = Detections(torch.zeros(2, 4), torch.ones(2), torch.tensor([1, 0]), torch.from_numpy(mask))
    _, masks = coco_results([found], [3], category_ids=[5, 6])
    assert [record['category_id'] for record in masks] == [6, 5]
    for record, want in zip(masks, mask, strict=True):
        assert record['segmentation']['size'] == [60, 90]
        assert isinstance(record['segmentation']['counts'], str)
        assert np.array_equal(pycocotools.mask.decode(record['segmentation']).astype(bool), want)


def test_where_padding_is_filled_in() -> None:
    assert not pads_pixels(Preprocessing(DIVISOR, IMAGENET))
    assert pads_pixels(Preprocessing(LETTERBOX, IMAGENET))
    assert pads_pixels(Preprocessing(DIVISOR, Normalisation(padding=(1.0, 2.0, 2.0))))
    # A padding of 0 after the normalisation is the mean before, which is no whole pixel value.
    assert padding_pixel(IMAGENET) == (104, 116, 124)
    moved = at_geometry(Preprocessing(DIVISOR, IMAGENET), LETTERBOX)
    assert moved.normalisation.padding == pytest.approx(
        ((124 - 123.675) / 58.395, (116 - 116.28) / 57.12, (104 - 103.53) / 57.375)
    )
    assert padding_pixel(moved.normalisation) == (104, 116, 124)
    assert at_geometry(Preprocessing(LETTERBOX, IMAGENET), DIVISOR).normalisation == IMAGENET
