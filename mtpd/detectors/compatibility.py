"""What mmdet 3.3 leaves undone in detectors of its own zoo, done to a detector that was built.

Nothing here changes what a detector computes where mmdet can compute it.
"""

from typing import Any

from torch import nn

from mtpd.detectors.runtime import prepare


def complete(model: nn.Module) -> None:
    """Gives a detector the parts that mmdet adds to it in its first training step, in place.

    DDQ's decoder then gets its head's auxiliary branches under a name of its own, so that all checkpoints of mmdet have
    them twice, and a detector that was not trained yet does not take them.
    """
    prepare()
    from mmdet.models.detectors import DDQDETR

    if isinstance(model, DDQDETR):
        parts: Any = model
        parts.decoder.aux_reg_branches = parts.bbox_head.aux_reg_branches


def takes_one_image(model: nn.Module) -> bool:
    """Whether a detector predicts one image at a time: mmcv's masked convolution (guided anchoring) takes no batch."""
    prepare()
    from mmcv.ops import MaskedConv2d

    return any(isinstance(one, MaskedConv2d) for one in model.modules())


def predicts_masks(model: nn.Module) -> bool:
    """Whether the objects that a detector predicts have masks, wherever its mask branch is.

    mmdet's `with_mask` knows heads called `mask_head` alone, not RTMDet-Ins's box head nor MaskFormer's panoptic one.
    """
    if getattr(model, 'with_mask', False):
        return True
    heads = [getattr(model, name, None) for name in ('bbox_head', 'panoptic_head')]
    return any(isinstance(getattr(head, 'loss_mask', None), nn.Module) for head in heads)
