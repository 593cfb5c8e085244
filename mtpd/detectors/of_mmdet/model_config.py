"""A model's config (nested dicts, lists and tuples) before mmdet builds it: what it holds, and edits in place."""

import importlib.util
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from torch import nn

from mtpd.errors import InputError
from mtpd.system.files import canonical_json, sha256_bytes

# By their names in registries and as classes.
SYNCHRONISED_NORMS = {'SyncBN', 'MMSyncBN', 'NaiveSyncBN', 'SyncBatchNorm', 'NaiveSyncBatchNorm'}
BATCH_NORMS = {'BN', 'BN2d', 'BatchNorm2d'}
BN_EPSILON = 1e-5  # PyTorch's default
BERT_BASE_WIDTH = 768  # of the language models of the zoo
# These classify something else than the data set's classes: object or not, or the classes of a stuff map.
OTHER_HEADS = {'rpn_head', 'semantic_head'}
# CrowdDet, whose head fails in mmdet 3.3 on more, and detectors that propose objects of no class.
ONE_CLASS = {'MultiInstanceBBoxHead', 'RPN'}
CLASSIFYING_HEADS = ('bbox_head', 'mask_head', 'point_head', 'mask_iou_head', 'glbctx_head', 'segm_head')
# Keys of weights: `checkpoint`, `pretrained`, `teacher_ckpt`, `checkpoint_path`, ...
_WEIGHTS_KEY = re.compile(r'(^|_)(checkpoints?|ckpt|pretrain(ed|ing)?)(_|$)|^weights$')
_ADDRESS = re.compile(r'[a-z][a-z0-9+.-]*://', re.IGNORECASE)
_PRETRAINED = {'Pretrained', 'PretrainedInit'}


def type_name(node: Any) -> str:
    """The bare class name of a `type` or of the dict that has it: 'Resize' of 'mmdet.Resize'; '' if it names none."""
    kind = node.get('type') if hasattr(node, 'get') else node
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return str(name).rpartition('.')[2]


def config_items(config: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
    """Every entry of a nested config, outermost first: its dotted key, its key, its value."""
    for key, value in list(config.items()) if isinstance(config, dict) else list(enumerate(config)):
        place = f'{path}.{key}' if path else str(key)
        yield place, key, value
        if isinstance(value, dict | list | tuple):
            yield from config_items(value, place)


def config_dicts(config: Any) -> Iterator[Any]:
    """Every dict in a nested config, outermost first."""
    yield config
    yield from (value for _, _, value in config_items(config) if isinstance(value, dict))


def class_parameters(node: Any) -> dict[str, inspect.Parameter]:
    """The arguments of the class that a part of a config is built by; a subclass's come first."""
    from mmdet.registry import MODELS

    kind = node.get('type')
    try:
        cls = MODELS.get(kind) if isinstance(kind, str) else kind
    except Exception:  # building the model reports the wrong name
        return {}
    found: dict[str, inspect.Parameter] = {}
    # Subclasses often pass their arguments on as **kwargs.
    for base in inspect.getmro(cls)[:-1] if inspect.isclass(cls) else ():
        if '__init__' in vars(base):
            for name, parameter in inspect.signature(vars(base)['__init__']).parameters.items():
                if name not in found or found[name].default is inspect.Parameter.empty:
                    found[name] = parameter
    return found


def definition_sha256(config: Any) -> str:
    """Hash of the network that an mmengine Config defines, independent of its file, its location and the process."""
    return sha256_bytes(canonical_json(_plain(config.model.to_dict())))


def _plain(value: Any) -> Any:
    """A config as JSON values that are the same in every process; anything else by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # JSON has no infinity, which configs use as a bound.
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value) if isinstance(value, float) else value
    return getattr(value, '__qualname__', type(value).__qualname__)


def make_buildable(config: Any, *, zoo_folder: Path) -> None:
    """Works around what stops models of the zoo from being built in one process on today's PyTorch."""
    for node in config_dicts(config):
        if type_name(node) in SYNCHRONISED_NORMS:
            node['type'] = 'BN'
        # BatchNorm without an epsilon (NAS-FCOS) is refused by PyTorch in training.
        if type_name(node) in BATCH_NORMS and node.get('eps') == 0:
            node['eps'] = BN_EPSILON
        # Only saves memory in training, with a package that is rarely installed.
        if 'num_cp' in node and importlib.util.find_spec('fairscale') is None:
            node['num_cp'] = 0
        if 'language_model' in node:
            node['language_model'] = {'type': NoLanguageModel}
        # mmdet resolves this against the working directory.
        teacher = node.get('teacher_config')
        if isinstance(teacher, str) and not Path(teacher).is_file():
            node['teacher_config'] = str(zoo_folder.parent / teacher)


class NoLanguageModel(nn.Module):
    """In place of the language model of detectors with text prompts: the maps of their necks do not depend on words."""

    def __init__(self) -> None:
        super().__init__()
        # Where mmdet looks for the width when it builds the layers that follow.
        self.language_backbone = SimpleNamespace(body=SimpleNamespace(language_dim=BERT_BASE_WIDTH))

    def forward(self, captions: object, **options: object) -> NoReturn:
        """Raises NotImplementedError: nothing here understands text."""
        raise NotImplementedError('this detector was built for its features, without its language model')


def set_num_classes(config: Any, num_classes: int) -> None:
    """Sets the number of classes of every head that classifies objects. InputError where a head cannot have it."""
    if 'panoptic_head' in config:
        _set_num_things(config, num_classes)
    if num_classes != 1 and any(type_name(node) in ONE_CLASS for node in config_dicts(config)):
        raise InputError(
            f'{type_name(config)} detects objects of one class, but the data has {num_classes} '
            'classes; use data of one class, or a detector such as faster-rcnn_r50_fpn_1x_coco'
        )
    for place, key, node in [('', '', config), *config_items(config)]:
        path = place.split('.')
        if not isinstance(node, dict) or not OTHER_HEADS.isdisjoint(path):
            continue
        name = path[-2] if isinstance(key, int) else key  # of a head, which may be one of a list
        if 'num_classes' in node or (name in CLASSIFYING_HEADS and 'num_classes' in class_parameters(node)):
            node['num_classes'] = num_classes


def _set_num_things(config: Any, num_classes: int) -> None:
    """Sets the classes of MaskFormer and its like, which count things (objects) and stuff apart."""
    heads = [config[name] for name in ('panoptic_head', 'panoptic_fusion_head') if name in config]
    # mmdet's default is that of COCO panoptic.
    num_stuff = max(head.get('num_stuff_classes', 53) for head in heads)
    predicts_instances = (config.get('test_cfg') or {}).get('instance_on', False)
    if num_stuff or not predicts_instances:
        raise InputError(
            f'{type_name(config)}: its heads predict {num_stuff} stuff classes, and '
            f'{"" if predicts_instances else "its test_cfg predicts no instances, but "}students detect objects only; '
            'choose mask2former_r50_8xb2-lsj-50e_coco, or set `model: {panoptic_head.num_stuff_classes: 0, '
            'panoptic_fusion_head.num_stuff_classes: 0, test_cfg.panoptic_on: false, test_cfg.instance_on: true}`'
        )
    for head in heads:
        head['num_things_classes'] = num_classes
    loss = config['panoptic_head'].get('loss_cls') or {}
    weights = loss.get('class_weight')
    if not isinstance(weights, list | tuple) or len(set(weights[:-1])) != 1:
        raise InputError(
            f'{type_name(config)}: panoptic_head.loss_cls.class_weight is {weights!r}, expected a list with one weight '
            'per class and one for the background at its end; change it'
        )
    loss['class_weight'] = [weights[0]] * num_classes + [weights[-1]]


def weight_references(config: Any) -> Iterator[tuple[str, str]]:
    """Every reference to weights in a nested config: its dotted key and what it names ('True' of `pretrained=True`)."""
    return ((place, str(value)) for place, key, value in config_items(config) if _is_reference(key, value))


def drop_weight_references(config: Any) -> None:
    """Removes them, in place: an `init_cfg` that names weights as a whole; other keys become None or False."""
    for key, value in list(config.items()) if isinstance(config, dict) else list(enumerate(config)):
        if key == 'init_cfg':
            kept = [one for one in (value if isinstance(value, list | tuple) else [value]) if not _names_weights(one)]
            if not kept:
                del config[key]
            elif isinstance(value, list | tuple):
                config[key] = kept
        elif _is_reference(key, value):
            config[key] = False if value is True else None
        elif isinstance(value, tuple) and any(True for _ in weight_references(value)):
            config[key] = changed = list(value)
            drop_weight_references(changed)
        elif isinstance(value, dict | list):
            drop_weight_references(value)


def backbone_reference(model: Any) -> str | None:
    """Where a model's config takes its backbone's weights from, such as 'torchvision://resnet50'; None: nowhere."""
    found = {place: value for place, value in weight_references(model) if value != 'True'}
    places = [place for place in found if re.fullmatch(r'backbone\.init_cfg(\.\d+)?\.checkpoint', place)]
    # Two older spellings follow.
    return next((found[one] for one in (*places, 'backbone.pretrained', 'pretrained') if one in found), None)


def _names_weights(init: Any) -> bool:
    return isinstance(init, dict) and (
        type_name(init) in _PRETRAINED or any(_is_reference(key, value) for key, value in init.items())
    )


def _is_reference(key: Any, value: Any) -> bool:
    named = isinstance(key, str) and _WEIGHTS_KEY.search(key) is not None
    if value is True:
        return named and 'pretrain' in key
    return isinstance(value, str) and bool(value) and (named or _ADDRESS.match(value) is not None)
