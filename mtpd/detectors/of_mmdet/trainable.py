"""Which detectors of mmdet can be students, and what is changed to train them.

Students learn from images, boxes, classes and masks of objects alone. What a config freezes, which makes sense of
pretrained weights alone, is trained where weights start at random.
"""

import importlib.util
import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mtpd.detectors.detector import part_of
from mtpd.detectors.of_mmdet.model_config import class_parameters, config_dicts, config_items, type_name
from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd.detectors.packages import missing_package
from mtpd.errors import InputError, UnavailableError
from mtpd.geometry import Level, Size

# Heads that count from a border around the image, which mmdet's RandomCenterCropPad puts there and its Pad does not.
BORDERED_HEADS = {'CenterNetHead', 'CornerHead', 'CentripetalHead'}
# YOLACT's stacks what it has for each image, which depends on the image's padding.
ONE_SIZE_HEAD = 'YOLACTHead'
# What is left of a detector without the teacher that it brings.
WITHOUT_TEACHER = {'LDHead': 'gfl_r50_fpn_1x_coco', 'LADHead': 'paa_r50_fpn_1x_coco'}
WITHOUT_STUFF = {
    'HybridTaskCascade': 'htc-without-semantic_r50_fpn_1x_coco',
    'SCNet': 'htc-without-semantic_r50_fpn_1x_coco',
    'PanopticFPN': 'mask-rcnn_r50_fpn_1x_coco',
}

NORM_CFG = 'norm_cfg'


def require_trainable(config: Any) -> None:
    """Refuses a detector that learns from, or predicts with, something else than a student gets; advises another."""
    name = type_name(config.model)
    nodes = list(config_dicts(config.model))
    heads = {type_name(node) for node in nodes}
    if obstacle := _obstacle(config.model, nodes, heads):
        raise InputError(f'{name}{obstacle}')
    # It is imported when the losses are computed, not when the head is built.
    if 'PAAHead' in heads and importlib.util.find_spec('sklearn') is None:
        needed = missing_package(ModuleNotFoundError(name='sklearn'))
        raise UnavailableError(f'{name}: its PAAHead needs {needed}')


def _obstacle(model: Any, nodes: list[Any], heads: set[str]) -> str | None:
    """What keeps a detector from being a student, to follow its name; None: nothing."""
    own_teacher = sorted(key for node in nodes for key in node if key == 'teacher' or key.startswith('teacher_'))
    if own_teacher:
        other = next((WITHOUT_TEACHER[head] for head in sorted(heads) if head in WITHOUT_TEACHER), None)
        return (
            f' is distilled from its own teacher ({own_teacher[0]}), whose weights a student does not get; '
            f'choose its student part, {other or "a detector without that teacher"}, and set a teacher with `cache` or '
            '`teacher`'
        )
    inner = model.get('detector')
    if isinstance(inner, Mapping):
        what = type_name(inner)  # none in a wrapper around another library
        return (
            f' is a wrapper around {f"the detector {what}" if what else "another library"}, not a detector that '
            f'students can be; {"write a config whose `model` is that detector, or " if what else ""}choose a detector '
            'of the zoo, such as faster-rcnn_r50_fpn_1x_coco'
        )
    if 'tracker' in model or 'track_head' in model or type_name(model) == 'BaseReID':
        return (
            ' is part of a video tracker, but students get single images; choose a detector, such as '
            'mask-rcnn_r50_fpn_1x_coco'
        )
    if 'roi_head' in model and 'rpn_head' not in model:
        return (
            ' has no rpn_head: it is trained on proposals from a file of another detector, but '
            'students get only images and annotations; choose faster-rcnn_r50_fpn_1x_coco'
        )
    if any(isinstance(node.get('semantic_head'), Mapping) for node in nodes):
        other = WITHOUT_STUFF.get(type_name(model), 'a detector without it')
        return (
            ' has a semantic_head, which is trained on stuff maps; students get only boxes, classes and masks of '
            f'objects: choose {other}'
        )
    if any('language_model' in node for node in nodes):
        return (
            ' detects what a text describes, but students get no text; choose a detector without a language '
            'model, such as atss_r50_fpn_dyhead_1x_coco or dino-4scale_r50_8xb2-12e_coco'
        )
    if 'BoxInstMaskHead' in heads:
        return (
            ' learns masks from the colours of neighbouring pixels, which its data preprocessor compares, but '
            'students get only normalised images; choose condinst_r50_fpn_ms-poly-90k_coco_instance'
        )
    if bordered := sorted(heads & BORDERED_HEADS):
        return (
            f': its {bordered[0]} predicts boxes for images centred in a border (RandomCenterCropPad), but '
            'students get images padded at the right and the bottom; choose '
            'centernet-update_r50-caffe_fpn_ms-1x_coco, which needs no border'
        )
    return None


def require_inputs(model: Any, *, levels: Sequence[Level], padded: Collection[Size]) -> None:
    """Refuses an mmdet detector that cannot be trained or tried on inputs of these `padded` (height, width), px."""
    name, head = type(model).__name__, getattr(model, 'bbox_head', None)
    sizes = sorted(set(padded))
    if type(head).__name__ == ONE_SIZE_HEAD and len(sizes) > 1:
        raise InputError(
            f'{name} concatenates the anchors of a batch, which fails for images of several sizes, and these have '
            f'{len(sizes)} ({sizes[0][0]} x {sizes[0][1]} px, {sizes[1][0]} x {sizes[1][1]} px, ...); set '
            '`data: {geometry: {scale: 550x550, keep_ratio: false}}`, or a teacher with that input'
        )
    num_queries = getattr(model, 'num_queries', None)
    if not isinstance(num_queries, int) or head is None:
        return
    # DETR and its successors.
    cells = min((sum(math.prod(level.grid(*size)) for level in levels) for size in sizes), default=num_queries)
    if getattr(model, 'as_two_stage', False) and num_queries > cells:
        raise InputError(
            f'{name} selects its {num_queries} queries from the cells of its maps, but the smallest input has only '
            f'{cells} of them; set `model: {{num_queries: {cells}}}` or fewer, or use larger inputs (data.geometry)'
        )
    found = num_queries * (head.num_classes if head.loss_cls.use_sigmoid else 1)
    kept = (head.test_cfg or {}).get('max_per_img', 0)
    if kept > found:
        raise InputError(
            f'{name} makes {found} detections from its {num_queries} queries, but its test_cfg keeps {kept}; '
            f'set `model: {{test_cfg.max_per_img: {found}}}` or fewer'
        )


def unfreeze(model: Any, *, loaded: Collection[str], kept: Collection[str]) -> Mapping[str, Any]:
    """Changes a model's config so that what starts from random weights is trained; returns new values by dotted key.

    A network that learns itself (`teacher`), the PARTS whose weights are `loaded`, and the dotted keys in `kept` stay
    as they are.
    """
    prepare()
    changes: dict[str, Any] = {}
    for path, _, node in config_items(model):
        is_built = isinstance(node, dict) and 'type' in node
        if not is_built or part_of(path) in loaded or 'teacher' in path:
            continue
        for key, value in _unfreezing(node):
            place = f'{path}.{key}'
            if place in kept:
                continue
            owner = node[NORM_CFG] if key.startswith(NORM_CFG) else node
            owner[key.rpartition('.')[2]] = changes[place] = value
    return changes


def _unfreezing(node: Any) -> Iterator[tuple[str, Any]]:
    """The keys of one part of a model that freeze something, also by a default, each with a value that does not."""
    parameters = class_parameters(node).items()
    defaults = {name: one.default for name, one in parameters if one.default is not inspect.Parameter.empty}
    norm = node.get(NORM_CFG, defaults.get(NORM_CFG))
    norm_name = 'BN' if norm is None else type_name(norm)
    default = defaults.get('frozen_stages', -1)
    # -1 mostly; EfficientNet counts from 0 and refuses -1.
    none = default if isinstance(default, int) and default <= 0 else -1
    stages = node.get('frozen_stages', default)
    if isinstance(stages, int) and stages > none:
        yield 'frozen_stages', none
    if node.get('norm_eval', defaults.get('norm_eval')) is True and any(one in norm_name for one in ('BN', 'Batch')):
        yield 'norm_eval', False
    if isinstance(node.get(NORM_CFG), dict) and node[NORM_CFG].get('requires_grad') is False:
        yield f'{NORM_CFG}.requires_grad', True
