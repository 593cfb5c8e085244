"""Teachers: a network that gives feature maps, with all that a cache must know about it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.detector import Detector
from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.input_options import InputOptions, stated_preprocessing
from mtpd.detectors.levels import levels_of
from mtpd.detectors.preprocessing import Preprocessing, normalise, probe_size
from mtpd.detectors.teacher_maps import Features, guarded, require_independent, require_repeated
from mtpd.errors import InputError
from mtpd.geometry import Level, Size
from mtpd.heads.roi_head import RoiHeadRecord


@dataclass(frozen=True)
class Teacher:
    """A network in eval mode that turns normalised images into feature maps.

    Attributes:
        name: as the user gave it.
        module: the network; its parameters need no gradient.
        features: (B, 3, H, W) -> maps (B, C, h, w), one for each of `levels`; raises `MtpdError`s only.
        levels: names, strides and channels.
        preprocessing: geometry and normalisation of its inputs.
        definition_sha256: hash of the model's config, or of the file and callable that make it.
        hook_point: where the maps are taken, see `mtpd.detectors.hook_points`.
        roi_head: how its RoI head is built; None where it has none that mtpd can run on its maps.
        classes: what its labels mean, in their order; None where neither its checkpoint nor its config has them.
        license: of its weights, which follows its features; None where it is not known.
        detector: the same network with its head; None where it has none that mtpd can use.
    """

    name: str
    module: nn.Module
    features: Features
    levels: tuple[Level, ...]
    preprocessing: Preprocessing
    definition_sha256: str
    hook_point: str
    roi_head: RoiHeadRecord | None = None
    classes: tuple[str, ...] | None = None
    license: str | None = None
    detector: Detector | None = None

    @torch.no_grad()
    def maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of normalised images (B, 3, H, W) by level name, in float32 even inside an autocast region.

        Raises:
            InputError: the network fails on images of this size, or gives other levels.
            UnavailableError: the device has too little memory for them.
        """
        with torch.autocast(images.device.type, enabled=False):
            maps = self.features(images)
        found = [values.shape[1] for values in maps]
        wanted = [level.channels for level in self.levels]
        if found != wanted:
            height, width = images.shape[2:]
            raise InputError(
                f'teacher {self.name}: returns {len(found)} maps with the channels {found} for an input of {height} x '
                f'{width} px, but {len(wanted)} with {wanted} before; it must return the same levels for all sizes'
            )
        return {level.name: values for level, values in zip(self.levels, maps, strict=True)}

    def maps_of(self, pixels: Sequence[Tensor], *, padded: Size) -> dict[str, Tensor]:
        """The maps of resized images, uint8 (3, h, w) in BGR order, by level name; raises what `maps` raises.

        `padded` is (height, width) of the network's input, px.
        """
        return self.maps(normalise(pixels, padded=padded, normalisation=self.preprocessing.normalisation))


def neck_and_head_weights(teacher: Teacher) -> dict[str, Tensor]:
    """All parameters and buffers outside the backbone, on the CPU, by their names in the teacher."""
    state = teacher.module.state_dict()
    return {
        name: value.detach().cpu().contiguous().clone() for name, value in state.items() if not _is_of_backbone(name)
    }


def _is_of_backbone(name: str) -> bool:
    """Whether a parameter lies in a module called `backbone`, wherever that is; torchvision's has its FPN in it."""
    _, found, inside = f'.{name}'.partition('.backbone.')
    return bool(found) and not inside.startswith('fpn.')


def teacher_of_module(
    reference: str,
    module: Any,
    *,
    definition_sha256: str,
    options: InputOptions,
    device: torch.device,
) -> Teacher:
    """The teacher of a module with `features` and attributes for its input; the rest is as in `Teacher`."""
    features = guarded(reference, module.features)
    preprocessing = stated_preprocessing(module, options, name=reference)
    size = probe_size(preprocessing.geometry)
    try:
        levels = levels_of(features, input_size=size, device=device)
    except InputError as error:
        raise error if reference in str(error) else InputError(f'teacher {reference}: {error}') from error
    with torch.no_grad():
        black = torch.zeros(1, 3, *size, device=device)
        maps = features(black)
        require_repeated(maps, features(black), name=reference)
        require_independent(features, black, maps, name=reference)
    return Teacher(
        name=reference,
        module=module,
        features=features,
        levels=levels,
        preprocessing=preprocessing,
        definition_sha256=definition_sha256,
        hook_point=NECK_MAPS,
    )


def teacher_of_detector(
    detector: Detector,
    *,
    definition_sha256: str,
    hook_point: str = NECK_MAPS,
    classes: tuple[str, ...] | None = None,
    license: str | None = None,
) -> Teacher:
    """The teacher of a detector with its weights, in eval mode, without gradients; the rest is as in `Teacher`."""
    features = guarded(detector.name, lambda images: detector.maps(images, hook_point=hook_point))
    levels = levels_of(features, input_size=probe_size(detector.preprocessing.geometry), device=detector.device)
    detector = replace(detector, levels=levels)
    return Teacher(
        name=detector.name,
        module=detector.module,
        features=features,
        levels=levels,
        preprocessing=detector.preprocessing,
        definition_sha256=definition_sha256,
        hook_point=hook_point,
        roi_head=detector.roi_head_record() if hook_point == NECK_MAPS else None,
        classes=classes,
        license=license,
        detector=detector,
    )


def teacher_fingerprint(teacher: Teacher) -> dict[str, Any]:
    """The network, how it is run, and the normalisation of its inputs; geometry and levels are stored elsewhere."""
    return {
        'teacher': {
            'weights': state_sha256(teacher.module.state_dict()),
            'definition': teacher.definition_sha256,
            'hook_point': teacher.hook_point,
            'mode': 'eval',
            # How the GPU computes float32; `none` leaves it to the wider setting.
            'precision': {
                'dtype': 'float32',
                'all': torch.backends.fp32_precision,  # type: ignore[attr-defined]
                'matmul': torch.backends.cuda.matmul.fp32_precision,
                'convolution': torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
            },
        },
        'normalisation': asdict(teacher.preprocessing.normalisation),
    }


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of tensors: names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f'{name} {value.dtype} {tuple(value.shape)}\n'.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
