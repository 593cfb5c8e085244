"""torchvision's detectors by name: which there are, what may be changed of them, and building them without weights.

Importing torchvision's models takes half a second, so it is done inside the functions.
"""

import difflib
import inspect
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from mtpd.errors import InputError
from mtpd.system.files import sha256_file

PREFIX = 'torchvision:'
SSD300, SSDLITE, KEYPOINTS = 'ssd300_vgg16', 'ssdlite320_mobilenet_v3_large', 'keypointrcnn_resnet50_fpn'
STUDENTS = (
    'retinanet_resnet50_fpn', 'retinanet_resnet50_fpn_v2', 'fcos_resnet50_fpn', 'fasterrcnn_resnet50_fpn',
    'fasterrcnn_resnet50_fpn_v2', 'fasterrcnn_mobilenet_v3_large_fpn', 'fasterrcnn_mobilenet_v3_large_320_fpn',
    'maskrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn_v2', SSDLITE, SSD300,
)  # fmt: skip
# Of key points no more than the boxes is used.
TEACHERS = (*STUDENTS, KEYPOINTS)
# torchvision sets the eps of their frozen norms to 0 with its published weights, which were trained so.
WITHOUT_EPS = ('retinanet_resnet50_fpn', 'fasterrcnn_resnet50_fpn', 'maskrcnn_resnet50_fpn', KEYPOINTS)

# They follow from other settings, or change nothing in the network.
_NOT_CHANGED = {'progress', 'num_classes', 'weights', 'weights_backbone'}
# Settings whose default is None, and what they are.
_WITHOUT_DEFAULT = {'trainable_backbone_layers': 0, 'bbox_reg_weights': (10.0, 10.0, 5.0, 5.0)}
TRAINABLE, TAIL = 'trainable_backbone_layers', 'reduced_tail'


def require_network(reference: str, *, among: tuple[str, ...]) -> str:
    """The name in a reference. InputError for one that is not `among` the known ones."""
    name = reference.removeprefix(PREFIX)
    if name in among:
        return name
    if name in TEACHERS:
        raise InputError(f'{reference}: finds key points, which mtpd trains no student for; it can be a teacher')
    close = difflib.get_close_matches(name, among, n=3) or among
    raise InputError(f'{reference}: mtpd knows no detector {name} of torchvision; it knows {", ".join(close)}')


def require_changes(name: str, changes: Mapping[str, Any]) -> None:
    """Refuses changes that torchvision's function for the network does not take as plain values, by name."""
    known = _changeable(name)
    for key, value in changes.items():
        if key not in known:
            raise InputError(
                f'model: {key}: cannot be changed of {PREFIX}{name}; what can is {", ".join(sorted(known))}'
            )
        if not _is_like(value, known[key]):
            raise InputError(f'model: {key}: is {value!r:.80}, expected {_KINDS[type(known[key])]}')
    if name == SSDLITE and TRAINABLE in changes and changes.get(TAIL, True):
        raise InputError(
            f'model: {TRAINABLE}: torchvision trains all layers of {name}; remove it, or set {TAIL} to false'
        )


def build_network(
    name: str, changes: Mapping[str, Any], *, num_outputs: int | None = None, pretrained: bool = False
) -> Any:
    """torchvision's detector with random weights; `num_outputs` counts the background, None: as published.

    `pretrained`: as torchvision builds it for a pretrained backbone, whose first layers and norms it freezes.
    """
    return _built(name, changes, num_outputs=num_outputs, pretrained=pretrained)[0]


def empty_network(name: str, changes: Mapping[str, Any]) -> Any:
    """The same without memory for its weights, to look at how it is built."""
    with torch.device('meta'):
        return build_network(name, changes, pretrained=True)


def backbone_tensors(name: str, changes: Mapping[str, Any]) -> dict[str, str]:
    """Names of the detector's tensors that pretrained backbones have -> their names in torchvision's classifier.

    Found by what the detector shares with the classifier that torchvision makes it of.
    """
    # Without its full tail SSDLite is made of no pretrained classifier, but the names are the same.
    whole = {**changes, TAIL: False} if name == SSDLITE else changes
    with torch.device('meta'):
        detector, (classifier,) = _built(name, whole, pretrained=True)
    theirs = {id(value): key for key, value in classifier.state_dict(keep_vars=True).items()}
    own = detector.state_dict(keep_vars=True)
    return {key: theirs[id(value)] for key, value in own.items() if id(value) in theirs}


def published_weights(name: str) -> Any:
    """The entry of torchvision's enum of the detector's weights."""
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(name)
    return weights.DEFAULT


def backbone_weights(name: str) -> Any:
    """The entry of torchvision's enum of the weights that the detector's backbone starts from."""
    from torchvision.models import get_model_builder

    parameter = inspect.signature(get_model_builder(name)).parameters['weights_backbone']
    # The second versions have none by default, but the same ones by their older argument `pretrained_backbone`.
    return parameter.default or typing.get_args(parameter.annotation)[0].IMAGENET1K_V1


def published_outputs(name: str) -> tuple[int, ...]:
    """The outputs of a published detector that stand for classes: COCO's ids have gaps, which are called N/A."""
    categories = published_weights(name).meta['categories']
    return tuple(index for index, category in enumerate(categories) if index and category != 'N/A')


def published_classes(name: str) -> tuple[str, ...]:
    """What these outputs mean."""
    categories = published_weights(name).meta['categories']
    return tuple(categories[index] for index in published_outputs(name))


def is_published(name: str, path: Path) -> bool:
    """Whether a file is the published one, whose name ends in the first digits of its sha256."""
    digits = Path(published_weights(name).url).stem.rpartition('-')[2]
    return sha256_file(path).startswith(digits)


def _changeable(name: str) -> dict[str, Any]:
    """What can be changed -> its default, or a value of that kind."""
    from torchvision.models import get_model_builder

    builder = inspect.signature(get_model_builder(name))
    parameters = {**inspect.signature(builder.return_annotation.__init__).parameters, **builder.parameters}
    defaults = {key: one.default for key, one in parameters.items() if key not in _NOT_CHANGED}
    found: dict[str, Any] = {key: value for key, value in defaults.items() if isinstance(value, bool | int | float)}
    found |= {key: value for key, value in _WITHOUT_DEFAULT.items() if key in defaults}
    return found | ({TAIL: True} if name == SSDLITE else {})


_KINDS = {bool: 'true or false', int: 'a whole number', float: 'a number', tuple: 'a list of four numbers'}


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, list | tuple) and len(value) == len(default) and all(_is_like(v, 0.0) for v in value)
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    return isinstance(value, int) or (isinstance(default, float) and isinstance(value, float))


def _built(
    name: str, changes: Mapping[str, Any], *, num_outputs: int | None = None, pretrained: bool
) -> tuple[Any, list[nn.Module]]:
    """The detector, and the modules that torchvision would have loaded weights into."""
    from torchvision.models import get_model_builder

    given = dict(changes)
    # With another weights_backbone this one has another network, not that of its published weights.
    pretrained = not given.pop(TAIL, True) if name == SSDLITE else pretrained
    if not pretrained:
        given.pop(TRAINABLE, None)  # It would only warn that there is nothing to freeze.
    weights = backbone_weights(name) if pretrained else None
    builder = get_model_builder(name)
    with _nothing_loaded() as loading:
        try:
            return builder(weights=None, weights_backbone=weights, num_classes=num_outputs, **given), loading
        except (ValueError, TypeError, AssertionError) as error:
            text = ' '.join(str(error).split())[:200]
            raise InputError(f'model: its changes do not fit {PREFIX}{name}: {text}') from error


@contextmanager
def _nothing_loaded() -> Iterator[list[nn.Module]]:
    """torchvision fetches and loads no weights in the block; gives the modules that they were meant for."""
    from torchvision.models import WeightsEnum

    loading: list[nn.Module] = []

    def noted(module: nn.Module, *_: Any, **__: Any) -> None:
        loading.append(module)

    with (
        patch.object(WeightsEnum, 'get_state_dict', lambda *_, **__: {}),
        patch.object(nn.Module, 'load_state_dict', noted),
    ):
        yield loading
