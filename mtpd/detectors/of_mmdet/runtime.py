"""Makes mmdet usable: its compiled operators, its registries, its log output, and what fails in mmdet 3.3's own zoo.

Nothing here changes what a detector computes where mmdet can compute it.
"""

import functools
import importlib.resources
import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

logger = logging.getLogger(__name__)

# Raised by mmdet, mmcv and mmengine at run time: deprecated names, and hints for their authors.
KNOWN_WARNINGS = (
    r'Unnecessary conv bias before',
    r'Sparse invariant checks are implicitly disabled',
    r'`torch\.cuda\.amp\.',
    r'torch\.meshgrid: in an upcoming release',
    r'This overload of addmm is deprecated',
    r'To copy construct from a tensor',
    r'Default ``avg_non_ignore`` is False',
    r'DeprecationWarning: ',
    r"The 'warn' method is deprecated",
    r'The arguments `dropout` in MultiheadAttention',
    r'"(add_residual|dropout)" is deprecated in `FFN',
)


@functools.cache
def prepare() -> None:
    """Imports mmdet with working operators and registers its classes. Call it before any import of mmdet or mmcv.

    A compiled mmcv is used when it is installed; else `of_mmdet.mmcv_ext` takes the place of its operators.
    """
    with warnings.catch_warnings():
        # Errors raised by importing them are not mtpd's to fix.
        warnings.simplefilter('ignore')
        _provide_operators()
        from mmdet.utils import register_all_modules
        from mmengine.logging import MMLogger

        register_all_modules(init_default_scope=True)
        _repair_mmengine()
        _repair_mmdet()
    _ignore_known_warnings()
    # mmengine logs a line for every tensor that is initialised, and warns of backbones without pretrained weights.
    MMLogger.get_current_instance().setLevel(logging.ERROR)


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """For calls that must work where warnings are errors, or where the filters of `prepare` were reset."""
    with warnings.catch_warnings():
        _ignore_known_warnings()
        yield


def _ignore_known_warnings() -> None:
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings('ignore', message=message)


def _repair_mmengine() -> None:
    """Lets configs have a `_base_` such as 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', and import `os`."""
    from mmengine.config import config, utils

    # mmengine 0.10 finds packages by `pkg_resources`, which setuptools no longer has.
    config.is_installed = lambda package: importlib.util.find_spec(package) is not None
    config.get_installed_path = lambda package: str(importlib.resources.files(package))
    # It recognises the standard library by the paths of its files, which modules frozen into Python 3.11 lack. It then
    # treats the config as one in pure Python, reads no `_base_` and calls nothing.
    is_standard = utils._is_builtin_module
    for module in (config, utils):
        module._is_builtin_module = lambda name: name.partition('.')[0] in sys.stdlib_module_names or is_standard(name)


def _provide_operators() -> None:
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            logger.warning('the compiled mmcv cannot be loaded (%s); using the operators of torchvision', error)
        from mtpd.detectors.of_mmdet import mmcv_ext

        mmcv_ext.install()


def _repair_mmdet() -> None:
    """Repairs three parts of mmdet whose predictions fail, for all detectors in this process."""
    from mmdet.models.dense_heads import GARPNHead, GuidedAnchorHead, SSDHead
    from mmdet.models.roi_heads.mask_heads import fcn_mask_head

    # mmdet asks every dense head for its `loss_cls`, and SSD's has none. A subclass's own is found in `_modules`.
    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = property(lambda head: vars(head)['_modules'].get('loss_cls'))
    fcn_mask_head._do_paste_mask = _pasting_outside(fcn_mask_head._do_paste_mask)
    for head in (GuidedAnchorHead, GARPNHead):
        head._predict_by_feat_single = _finding_nothing(head._predict_by_feat_single)


def _pasting_outside(paste: Callable[..., Any]) -> Callable[..., Any]:
    """mmdet's function, on a CPU too for a box outside of the image, as QueryInst's may be: with the whole image."""

    def paste_anywhere(masks: Tensor, boxes: Tensor, img_h: int, img_w: int, skip_empty: bool = True) -> Any:
        # The region that mmdet cuts out, in x and y.
        first = (boxes.min(dim=0).values.floor()[:2] - 1).clamp(min=0)
        last = boxes.max(dim=0).values.ceil()[2:] + 1
        is_region = bool((first <= last.minimum(last.new_tensor((img_w, img_h)))).all())
        return paste(masks, boxes, img_h, img_w, skip_empty=skip_empty and is_region)

    return paste_anywhere


def _finding_nothing(predict: Callable[..., Any]) -> Callable[..., Any]:
    """mmdet's method, also for an image where guided anchoring keeps no location on any level: no boxes."""
    from mmengine.structures import InstanceData

    def predict_anything(
        head: Any, cls_scores: Any, bbox_preds: Any, mlvl_anchors: Any, mlvl_masks: Any, **rest: Any
    ) -> Any:
        if any(mask.any() for mask in mlvl_masks):
            return predict(head, cls_scores, bbox_preds, mlvl_anchors, mlvl_masks, **rest)
        scores = cls_scores[0].new_zeros(0)
        return InstanceData(bboxes=scores.new_zeros(0, 4), scores=scores, labels=scores.long())

    return predict_anything
