"""The config of a detector: read from plain values, changed, hashed, and written again.

Code of repositories is never run, and no network loads weights of its backbone by itself: only known classes of
transformers are built, with configs that name no such weights.
"""

import copy
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mtpd.detectors.of_hf.library import one_line, quiet, transformers_of
from mtpd.errors import InputError
from mtpd.system.files import canonical_json, sha256_bytes
from mtpd.system.text import listed

# model_type -> names of the classes of the config and the network.
MODELS = {
    'd_fine': ('DFineConfig', 'DFineForObjectDetection'),
    'rt_detr': ('RTDetrConfig', 'RTDetrForObjectDetection'),
    'rt_detr_v2': ('RTDetrV2Config', 'RTDetrV2ForObjectDetection'),
}
# Of timm's backbones transformers would download the weights.
BACKBONES = ('hgnet_v2', 'resnet', 'rt_detr_resnet')
BACKBONE_CONFIG, FROZEN_NORMS = 'backbone_config', 'freeze_backbone_batch_norms'
# Ways of older versions to name weights of a backbone.
_BACKBONE_WEIGHTS = ('backbone', 'backbone_kwargs', 'use_pretrained_backbone', 'use_timm_backbone')
_LABELS = ('id2label', 'label2id', 'num_labels')
# What the network does not depend on; `return_dict` and the like would change how it answers.
_NOT_OF_NETWORK = (
    'architectures', 'auto_map', 'chunk_size_feed_forward', 'dtype', 'name_or_path', 'output_attentions',
    'output_hidden_states', 'problem_type', 'return_dict', 'torch_dtype', 'transformers_version', 'use_cache',
)  # fmt: skip
_FIXED = ('is_encoder_decoder', 'model_type', 'tie_word_embeddings')
_GENERIC = re.compile(r'LABEL_\d+')


def read_config(values: Mapping[str, Any], *, name: str) -> Any:
    """The config of the plain `values` of a config.json; refuses networks that are not known, by name."""
    own = copy.deepcopy(dict(values))
    model_type = own.get('model_type')
    if not isinstance(model_type, str) or model_type not in MODELS:
        raise InputError(f'{name}: its model_type is {model_type!r:.80}, expected one of {", ".join(MODELS)}')
    if own.get('backbone') is not None:
        raise InputError(
            f'{name}: its backbone is {own["backbone"]!r:.80}, expected null: weights of a backbone by its name are '
            f'not loaded; describe it in {BACKBONE_CONFIG}'
        )
    if own.get('eval_size') is not None:  # transformers would then leave out the positions, in eval mode alone.
        raise InputError(f'{name}: its eval_size is {own["eval_size"]!r:.80}, expected null; set it to null')
    backbone = own.get(BACKBONE_CONFIG)
    backbone_type = backbone.get('model_type') if isinstance(backbone, Mapping) else backbone
    if backbone_type is not None and backbone_type not in BACKBONES:
        raise InputError(
            f'{name}: its {BACKBONE_CONFIG} is a {backbone_type!r:.80}, expected one of {", ".join(BACKBONES)}'
        )
    own = _without(own, (*_BACKBONE_WEIGHTS, *_NOT_OF_NETWORK))
    if backbone is not None:
        own[BACKBONE_CONFIG] = _without(backbone, (*_NOT_OF_NETWORK, *_LABELS))
    # Anchors are computed for each size of input; these would be kept for one, with the same values.
    own['anchor_image_size'] = None
    labels = own.get('id2label')
    if labels is not None and sorted(map(str, labels)) != sorted(map(str, range(len(labels)))):
        raise InputError(f'{name}: the keys of its id2label are {listed([*map(str, labels)])}, expected 0, 1, 2, ...')
    config_class = getattr(transformers_of(name), MODELS[model_type][0])
    try:
        with quiet():
            return config_class(**own)
    # Each setting is checked by the package in its own way.
    except Exception as error:
        raise InputError(f'{name}: its config does not fit {MODELS[model_type][0]}: {one_line(error)}') from error


def changed_config(config: Any, changes: Mapping[str, Any], *, name: str) -> Any:
    """The config with other values of its settings; of the backbone's as `backbone_config.NAME`."""
    if not changes:
        return config
    values = plain(config)
    known = settings_of(values)
    for key, value in _flat(changes).items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3)
            raise InputError(
                f'model: {key} is no setting of {name} that can be changed; '
                + (f'did you mean {", ".join(close)}?' if close else f'there are {listed(known, most=8)}')
            )
        owner = values[BACKBONE_CONFIG] if '.' in key else values
        owner[key.rpartition('.')[2]] = value
    return read_config(values, name=f'{name} with model: {dict(changes)!r:.120}')


def settings_of(values: Mapping[str, Any]) -> list[str]:
    """The dotted keys that a user may change."""
    fixed = (*_FIXED, *_LABELS, 'anchor_image_size', 'eval_size', BACKBONE_CONFIG)
    own = [key for key in values if key not in fixed]
    return own + [f'{BACKBONE_CONFIG}.{key}' for key in values[BACKBONE_CONFIG] if key not in fixed]


def with_classes(config: Any, classes: Sequence[str] | int) -> Any:
    """A copy of the config for objects of these classes, or of so many without names."""
    found = copy.deepcopy(config)
    if isinstance(classes, int):
        found.num_labels = classes
    else:
        found.id2label = dict(enumerate(classes))
        # Names may be repeated, numbers not.
        found.label2id = {name: number for number, name in enumerate(classes)}
    return found


def class_names(config: Any) -> tuple[str, ...] | None:
    """What its labels mean; None where they have no names."""
    names = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    return None if all(map(_GENERIC.fullmatch, names)) else names


def plain(config: Any) -> dict[str, Any]:
    """The settings of the network as JSON has them."""
    found = _without(json.loads(config.to_json_string(use_diff=False)), _NOT_OF_NETWORK)
    found[BACKBONE_CONFIG] = _without(found[BACKBONE_CONFIG], (*_NOT_OF_NETWORK, *_LABELS))
    return found


def network_sha256(config: Any) -> str:
    """Hash of the settings; of the labels only their number counts."""
    return sha256_bytes(canonical_json(_without(plain(config), _LABELS) | {'num_labels': config.num_labels}))


def _without(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Without private values too, such as the place that a config came from."""
    return {key: value for key, value in values.items() if key not in keys and not key.startswith('_')}


def _flat(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of the backbone's settings by dotted key, also where they are nested."""
    inner = changes.get(BACKBONE_CONFIG)
    if not isinstance(inner, Mapping):
        return dict(changes)
    rest = {key: value for key, value in changes.items() if key != BACKBONE_CONFIG}
    return rest | {f'{BACKBONE_CONFIG}.{key}': value for key, value in inner.items()}
