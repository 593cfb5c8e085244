"""Backbones of timm as teachers, vision foundation models among them: `timm:NAME`.

A vision transformer gives the patch tokens of its last block as one map at the stride of its patches, without class and
register tokens; `timm:NAME@5,11` names blocks instead, from 0, each of which is a level. Other backbones give their
stages from stride 4. Input size, normalisation and licence are those of timm's own record of the weights.
"""

import difflib
import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.teachers import Teacher, teacher_of_module
from mtpd.errors import InputError, UnavailableError
from mtpd.system.files import canonical_json, sha256_bytes

PREFIX = 'timm:'
# As long as the user says nothing else: that of detectors. Backbones of timm have no scale, but a size of crops.
SCALE = (1333, 800)
LEAST_STRIDE, PAD_DIVISOR, MAX_DIVISOR = 4, 32, 256


class TimmTeacher(nn.Module):
    """The module that `mtpd.detectors.of_file.teacher` describes: `features`, and attributes for its input."""

    scale = SCALE
    channel_order = 'rgb'
    pad_value, pad_after_normalisation = 0.0, True

    def __init__(self, backbone: nn.Module, indices: list[int], *, pad_divisor: int) -> None:
        super().__init__()
        self.backbone = backbone  # by this name its weights are not stored in caches
        self.indices = indices
        self.pad_divisor = pad_divisor
        record: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
        self.mean, self.std = (tuple(255 * one for one in record[name]) for name in ('mean', 'std'))
        self.license = record.get('license')
        # Those of the last block go through the last norm when the network is used.
        self._options = {'norm': True} if _takes_norm(backbone) else {}

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C, h, w)."""
        maps: list[Tensor] = self.backbone.forward_intermediates(  # type: ignore[operator]
            images, indices=self.indices, output_fmt='NCHW', intermediates_only=True, **self._options
        )
        return maps


def load_teacher(
    reference: str,
    *,
    checkpoint: Path | None,
    options: InputOptions,
    device: torch.device,
    trust_checkpoint: bool,
    hook: HookChoice,
) -> Teacher:
    """See `mtpd.detectors.references.load_teacher`."""
    module = build_timm_teacher(reference, checkpoint=checkpoint, device=device)
    definition = sha256_bytes(canonical_json([reference, module.indices]))
    teacher = teacher_of_module(reference, module, definition_sha256=definition, options=options, device=device)
    return replace(teacher, license=module.license)


def build_timm_teacher(reference: str, *, checkpoint: Path | None, device: torch.device) -> TimmTeacher:
    """The teacher of `timm:NAME` or `timm:NAME@BLOCK,BLOCK`, in eval mode, without gradients.

    Args:
        reference: its name, with the prefix.
        checkpoint: a file of its weights; None: timm's own, which are downloaded once.
        device: where it runs.

    Raises:
        InputError: there is no such backbone or block, or the checkpoint does not fit.
        UnavailableError: timm is not installed, or the weights cannot be downloaded.
    """
    try:
        import timm
    except ImportError:
        raise UnavailableError(f'teacher {reference}: needs timm, which is not installed: pip install timm') from None
    name, _, blocks = reference.removeprefix(PREFIX).partition('@')
    if not timm.is_model(name):
        close = difflib.get_close_matches(name.split('.')[0], timm.list_models(), n=3)
        raise InputError(
            f'teacher {reference}: timm has no model {name}; ' + (f'did you mean {", ".join(close)}?' if close else '')
        )
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f'teacher {reference}: there is no checkpoint {checkpoint}')
    backbone = _build(reference, name, checkpoint)
    if not callable(getattr(backbone, 'forward_intermediates', None)) or not backbone.feature_info:
        raise InputError(f'teacher {reference}: gives no maps (timm has no intermediate features of it)')
    strides = [int(one['reduction']) for one in backbone.feature_info]  # type: ignore[union-attr]
    is_plain = len(set(strides)) == 1
    if blocks:
        indices = _chosen(blocks, num_blocks=len(strides), reference=reference)
    elif is_plain:
        indices = [len(strides) - 1]
    else:
        indices = [index for index, stride in enumerate(strides) if stride >= LEAST_STRIDE]
    divisor = strides[0] if is_plain else math.lcm(PAD_DIVISOR, *strides)
    # Strides without a common multiple are those of networks that resize their inputs; the levels will not fit.
    divisor = divisor if divisor <= MAX_DIVISOR else max(PAD_DIVISOR, *strides)
    teacher = TimmTeacher(backbone, indices, pad_divisor=divisor)
    return teacher.to(device).eval().requires_grad_(False)


def _build(reference: str, name: str, checkpoint: Path | None) -> nn.Module:
    import timm

    # timm compares the weights that it downloads with the network only if that has its classifier.
    options: dict[str, Any] = {'pretrained': True} if checkpoint is None else {'num_classes': 0}
    # Hubs and checkpoints have errors of many kinds.
    try:
        try:
            # Of transformers that are made for one size of images.
            model: nn.Module = timm.create_model(name, dynamic_img_size=True, **options)
        except TypeError:
            model = timm.create_model(name, **options)
    except Exception as error:
        raise UnavailableError(
            f'teacher {reference}: its weights cannot be downloaded ({_first_line(error)}); give --checkpoint FILE'
        ) from error
    if checkpoint is None:
        model.reset_classifier(0)  # type: ignore[operator]
        return model
    try:
        # Tensors alone: nothing is unpickled.
        keys = timm.models.load_checkpoint(model, str(checkpoint), strict=False, remap=False, weights_only=True)
    except Exception as error:
        raise InputError(f'teacher {reference}: {checkpoint} does not fit it: {_first_line(error)}') from error
    classifiers = model.pretrained_cfg.get('classifier') or ()  # type: ignore[union-attr, operator]
    names = [classifiers] if isinstance(classifiers, str) else classifiers
    beyond = [key for key in keys.unexpected_keys if not key.startswith(tuple(f'{one}.' for one in names))]
    if beyond:  # Some heads have further layers, which go with the classifier.
        whole = timm.create_model(name).state_dict()
        beyond = [key for key in beyond if key not in whole]
    if keys.missing_keys or beyond:
        raise InputError(
            f'teacher {reference}: {checkpoint} does not fit it: it lacks {len(keys.missing_keys)} of its tensors and '
            f'has {len(beyond)} others, the first is {[*keys.missing_keys, *beyond][0]}'
        )
    return model


def _takes_norm(backbone: nn.Module) -> bool:
    """Whether a network can give its maps behind its last norm."""
    forward: Any = backbone.forward_intermediates
    if 'norm' not in inspect.signature(forward).parameters:
        return False
    if len({one['reduction'] for one in backbone.feature_info}) == 1:  # type: ignore[union-attr]
        return True
    record: dict[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    try:
        # Networks with stages may have the argument and refuse it, without computing anything.
        with torch.no_grad():
            forward(torch.zeros(1, *record['input_size']), norm=True, intermediates_only=True)
    except AssertionError:
        return False
    return True


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n', maxsplit=1)[0][:200]


def _chosen(blocks: str, *, num_blocks: int, reference: str) -> list[int]:
    numbers = blocks.split(',')
    if not all(one.isdecimal() and int(one) < num_blocks for one in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(
            f'teacher {reference}: {blocks!r} should be different numbers of blocks from 0 to {num_blocks - 1}, '
            'such as @5,11'
        )
    return sorted(map(int, numbers))
