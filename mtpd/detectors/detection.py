"""Running an mmdet detector: training losses, and predictions as COCO results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask
import torch
from torch import Tensor, nn

from mtpd.detectors.preprocessing import Preprocessing, normalise, pads_pixels
from mtpd.detectors.runtime import prepare
from mtpd.detectors.transforms import Sample
from mtpd.errors import InputError


def collate(samples: Sequence[Sample], *, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Normalised inputs (B, 3, H, W) on `device`, each image at the top left, padded to the largest of the batch.

    Writes into the samples what mmdet's data preprocessor does: the sizes that its heads look up, boxes as plain
    tensors, masks padded like the inputs.
    """
    prepare()
    from mmdet.models.utils.misc import samplelist_boxtype2tensor

    sizes = [preprocessing.geometry.padded(sample.data_sample.ori_shape) for sample in samples]
    padded = max(height for height, _ in sizes), max(width for _, width in sizes)
    for sample, size in zip(samples, sizes, strict=True):
        # `pad_shape` is the image's own: anchors outside of it, in the padding of the batch, train nothing.
        meta = {'batch_input_shape': padded, 'pad_shape': size}
        sample.data_sample.set_metainfo(meta | ({'img_shape': size} if pads_pixels(preprocessing) else {}))
        instances = sample.data_sample.get('gt_instances')
        if instances is not None and 'masks' in instances:
            instances.masks = instances.masks.pad(padded)
    samplelist_boxtype2tensor([sample.data_sample for sample in samples])
    images = [sample.image.to(device, non_blocking=True) for sample in samples]
    return normalise(images, padded=padded, normalisation=preprocessing.normalisation)


def tell_progress(*, epoch: int, step: int) -> None:
    """Sets the `epoch`, from 0, and the optimizer steps done where mmengine's runner would; call it before each step.

    The losses of some heads depend on it: TOOD assigns as ATSS does in its first epochs.
    """
    from mmengine.logging import MessageHub

    hub = MessageHub.get_current_instance()
    hub.update_info('epoch', epoch)
    hub.update_info('iter', step)


def detection_losses(model: Any, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """The detector's own training losses by name, each summed over levels and stages: what mmdet adds to its total.

    `images` are normalised inputs (B, 3, H, W), `samples` the same after `collate`.
    """
    losses = model.loss(images, [sample.data_sample.to(images.device) for sample in samples])
    return {
        name: torch.stack([part.mean() for part in (value if isinstance(value, list | tuple) else [value])]).sum()
        for name, value in losses.items()
        if 'loss' in name
    }


@torch.no_grad()
def predict(
    model: Any, images: Tensor, samples: Sequence[Sample], *, category_ids: Sequence[int], with_masks: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Boxes and, `with_masks`, masks that a detector in eval mode finds, as COCO results in px of the original images.

    `images` are normalised inputs (B, 3, H, W), `samples` the same after `collate`, and `category_ids` those of the
    detector's classes. `bbox` is x, y, width, height; `segmentation` is run-length code.
    """
    data_samples = [sample.data_sample.to(images.device) for sample in samples]
    size = 1 if takes_one_image(model) else len(samples)
    results: list[Any] = []
    for start in range(0, len(samples), size):
        part = slice(start, start + size)
        results += model.predict(images[part], data_samples[part], rescale=True)
    boxes: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    for result, sample in zip(results, samples, strict=True):
        instances = result.pred_instances
        # CrowdDet gives its labels as floats.
        scores, labels = instances.scores.tolist(), instances.labels.long().tolist()
        shared = [
            {'image_id': sample.image_id, 'category_id': category_of(label, category_ids), 'score': score}
            for score, label in zip(scores, labels, strict=True)
        ]
        for record, (x1, y1, x2, y2) in zip(shared, instances.bboxes.tolist(), strict=True):
            boxes.append(record | {'bbox': [x1, y1, x2 - x1, y2 - y1]})
        if with_masks:
            for record, mask in zip(shared, instances.masks.cpu().numpy(), strict=True):
                code = pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))
                masks.append(record | {'segmentation': {'size': code['size'], 'counts': code['counts'].decode()}})
    return boxes, masks


def takes_one_image(model: nn.Module) -> bool:
    """Whether a detector predicts one image at a time: mmcv's masked convolution (guided anchoring) takes no batch."""
    from mmcv.ops import MaskedConv2d

    return any(isinstance(one, MaskedConv2d) for one in model.modules())


def predicts_masks(model: nn.Module) -> bool:
    """Whether the objects that a detector predicts have masks."""
    if getattr(model, 'with_mask', False):
        return True
    # mmdet only checks for a `mask_head`, not for RTMDet-Ins's box head nor MaskFormer's panoptic one.
    heads = [getattr(model, name, None) for name in ('bbox_head', 'panoptic_head')]
    return any(isinstance(getattr(head, 'loss_mask', None), nn.Module) for head in heads)


def category_of(label: int, category_ids: Sequence[int]) -> int:
    """COCO category id of a detector's label. InputError where the annotations have fewer classes."""
    if label >= len(category_ids):
        raise InputError(
            f'the detector predicted its class number {label + 1}, but the annotations have only '
            f'{len(category_ids)} categories; give annotations with the classes it was trained on'
        )
    return category_ids[label]
