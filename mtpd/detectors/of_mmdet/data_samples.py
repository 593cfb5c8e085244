"""Samples as mmdet's heads and losses expect them."""

from collections.abc import Sequence
from typing import Any

import torch

from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.preprocessing import Preprocessing, pads_pixels
from mtpd.detectors.samples import Sample
from mtpd.geometry import Size


def data_samples(
    samples: Sequence[Sample], *, preprocessing: Preprocessing, padded: Size, device: torch.device
) -> list[Any]:
    """mmdet's `DetDataSample`s, as its pipeline and data preprocessor make them: sizes, and objects on the device.

    `padded` is (height, width) px of the batch.
    """
    prepare()
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    found = []
    for sample in samples:
        (height, width), resized = sample.original, sample.resized
        # `pad_shape` is the image's own: anchors outside of it, in the padding of the batch, train nothing.
        own = preprocessing.geometry.padded(sample.original)
        meta = {
            'img_id': sample.image_id,
            'ori_shape': sample.original,
            'img_shape': own if pads_pixels(preprocessing) else resized,
            'scale_factor': (resized[1] / width, resized[0] / height),
            'pad_shape': own,
            'batch_input_shape': padded,
        }
        if sample.view == 'flip':
            meta |= {'flip': True, 'flip_direction': 'horizontal'}
        one = DetDataSample(metainfo=meta)
        if sample.target is not None:
            target = sample.target.to(device)
            one.gt_instances = InstanceData(bboxes=target.boxes, labels=target.labels)
            one.ignored_instances = InstanceData(bboxes=target.ignored, labels=target.ignored_labels)
            if target.masks is not None:
                one.gt_instances.masks = BitmapMasks(target.masks.numpy(), *resized).pad(padded)
        found.append(one)
    return found
