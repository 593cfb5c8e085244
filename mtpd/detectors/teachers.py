"""Teachers: a network that gives feature maps, with all that a cache must know about it.

A teacher is named in one of three ways: a zoo model or alias (`r101`, `swin_l`), an mmdet config file with a
checkpoint, or `file.py:callable`, where the callable takes the checkpoint's path and returns a module with `.features(images)`.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.checkpoint import load_checkpoint, load_into
from mtpd.detectors.features import levels_of, neck_features
from mtpd.detectors.models import build_detector, load_config
from mtpd.detectors.preprocessing import Normalisation, Preprocessing, read_preprocessing
from mtpd.detectors.weights import fetch_weights
from mtpd.detectors.zoo import find_model
from mtpd.errors import InputError
from mtpd.files import canonical_json, sha256_bytes, sha256_file
from mtpd.geometry import Geometry, Size
from mtpd.pyramid import Level

PROBE_SIZE: Size = (256, 320)


@dataclass(frozen=True)
class InputOptions:
    """What a user may say about a teacher's input. None: as the teacher's config or module has it.

    Attributes:
        scale: (long edge, short edge) px of the resize.
        mean, std: per channel in the network's order, for values 0..255 (only for `file.py:callable`, like the rest).
        channel_order: 'bgr' or 'rgb'.
        pad_divisor: the padded sides are multiples of this, px.
        pad_value: pixel value (before normalisation) of padding.
    """

    scale: tuple[int, int] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    channel_order: str | None = None
    pad_divisor: int | None = None
    pad_value: float | None = None


@dataclass(frozen=True)
class Teacher:
    """A network in eval mode that turns normalised images into feature maps.

    Attributes:
        name: as the user gave it.
        module: the network; its parameters need no gradient.
        features: (B, 3, H, W) -> maps (B, C, h, w), one for each of `levels`.
        levels: names, strides and channels.
        preprocessing: geometry and normalisation of its inputs.
        definition_sha256: hash of the model's config or source file.
        hook_point: where the maps are taken.
    """

    name: str
    module: nn.Module
    features: Callable[[Tensor], Sequence[Tensor]]
    levels: tuple[Level, ...]
    preprocessing: Preprocessing
    definition_sha256: str
    hook_point: str = 'neck'

    @torch.no_grad()
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of normalised images (B, 3, H, W) by level name."""
        return {level.name: values for level, values in zip(self.levels, self.features(images), strict=True)}


def load_teacher(
    reference: str,
    *,
    checkpoint: Path | None,
    options: InputOptions,
    device: torch.device,
    trust_checkpoint: bool = False,
) -> Teacher:
    """Builds a teacher from its name.

    Args:
        reference: zoo name, alias, config path, or `file.py:callable`.
        checkpoint: a local weights file; None lets a zoo model fetch its own.
        options: what the user says about the input.
        device: where the teacher runs.
        trust_checkpoint: unpickle a checkpoint that holds more than tensors and plain values.

    Raises:
        InputError: the name, file, checkpoint or options do not fit.
        UnavailableError: the weights cannot be fetched.
    """
    path, separator, function = reference.rpartition(':')
    if separator and path.endswith('.py'):
        return _from_callable(reference, Path(path), function, checkpoint=checkpoint, options=options, device=device)
    return _from_mmdet(
        reference, checkpoint=checkpoint, options=options, device=device, trust_checkpoint=trust_checkpoint
    )


def neck_and_head_weights(teacher: Teacher) -> dict[str, Tensor]:
    """All parameters and buffers outside the backbone, on the CPU, by their names in the teacher."""
    state = teacher.module.state_dict()
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in state.items()
        if not name.startswith('backbone.')
    }


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of tensors: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _from_mmdet(
    reference: str, *, checkpoint: Path | None, options: InputOptions, device: torch.device, trust_checkpoint: bool
) -> Teacher:
    _refuse_input_options(reference, options)
    config = load_config(reference)
    if checkpoint is None:
        model_entry = find_model(reference)
        if model_entry is None:
            raise InputError(f'teacher {reference}: a config file needs its weights: add --checkpoint FILE')
        checkpoint = fetch_weights(model_entry)
    module = build_detector(config, init_weights=False)
    state = load_checkpoint(checkpoint, allow_pickle=trust_checkpoint)
    load_into(module, state, name=f'teacher {reference} from {checkpoint}')
    module = module.to(device).eval().requires_grad_(False)

    def features(images: Tensor) -> Sequence[Tensor]:
        return neck_features(module, images)

    return Teacher(
        name=reference,
        module=module,
        features=features,
        levels=levels_of(features, input_size=PROBE_SIZE, device=device),
        preprocessing=read_preprocessing(config, scale=options.scale),
        definition_sha256=sha256_bytes(canonical_json(_plain(config.model.to_dict()))),
    )


def _from_callable(
    reference: str, path: Path, function: str, *, checkpoint: Path | None, options: InputOptions, device: torch.device
) -> Teacher:
    if not path.is_file():
        raise InputError(f'teacher {reference}: there is no file {path}')
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f'teacher {reference}: there is no checkpoint {checkpoint}')
    builder = getattr(_import_file(path), function, None)
    if not callable(builder):
        raise InputError(f'teacher {reference}: {path} defines no callable {function}')
    module = builder(None if checkpoint is None else str(checkpoint))
    if not isinstance(module, nn.Module) or not callable(getattr(module, 'features', None)):
        raise InputError(f'teacher {reference}: {function} must return a torch module with a method features(images)')
    module = module.to(device).eval().requires_grad_(False)
    features: Callable[[Tensor], Sequence[Tensor]] = module.features
    return Teacher(
        name=reference,
        module=module,
        features=features,
        levels=levels_of(features, input_size=PROBE_SIZE, device=device),
        preprocessing=_stated_preprocessing(reference, module, options),
        definition_sha256=sha256_file(path),
    )


def _stated_preprocessing(reference: str, module: nn.Module, options: InputOptions) -> Preprocessing:
    """What the user, or attributes of the module with the same names, say about the input."""

    def stated(name: str, default: Any = None) -> Any:
        value = getattr(options, name)
        value = getattr(module, name, default) if value is None else value
        if value is None:
            option = f'--{name.replace("_", "-")}'
            raise InputError(
                f'teacher {reference}: its {name} is not known; give {option}, or set `{name}` on the module'
            )
        return value

    scale, mean, std = stated('scale'), stated('mean'), stated('std')
    pad_value = float(stated('pad_value', 0.0))
    order = stated('channel_order', 'bgr')
    if order not in ('bgr', 'rgb'):
        raise InputError(f'teacher {reference}: channel_order is {order!r}, expected bgr or rgb')
    padding = tuple((pad_value - m) / s for m, s in zip(mean, std, strict=True))
    return Preprocessing(
        geometry=Geometry((int(scale[0]), int(scale[1])), pad_divisor=int(stated('pad_divisor', 32))),
        normalisation=Normalisation(tuple(mean), tuple(std), order == 'rgb', padding),
    )


def _refuse_input_options(reference: str, options: InputOptions) -> None:
    given = [name for name, value in vars(options).items() if value is not None and name != 'scale']
    if given:
        option = f'--{given[0].replace("_", "-")}'
        raise InputError(
            f'{option}: the input of {reference} is read from its config; the option is for file.py:callable'
        )


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f'mtpd_teacher_{path.stem}', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _plain(value: Any) -> Any:
    """A config as JSON values; anything else by its name."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
