"""Detectors of torchvision as teachers: `torchvision:NAME`, such as `torchvision:fasterrcnn_resnet50_fpn_v2`.

Their maps are those that torchvision's own head gets. Scale, normalisation and padding are those of the detector.
"""

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.errors import InputError, UnavailableError

PREFIX = 'torchvision:'


class TorchvisionTeacher(nn.Module):
    """The module that `mtpd.detectors.teacher_file` describes: `features`, and attributes for its input."""

    channel_order = 'rgb'
    # torchvision pads normalised images with zeros.
    pad_value, pad_after_normalisation = 0.0, True

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        transform = detector.transform
        fixed = getattr(transform, 'fixed_size', None)
        # As (long edge, short edge), or (width, height) where the aspect ratio is not kept.
        self.scale = (transform.max_size, transform.min_size[-1]) if fixed is None else tuple(fixed)
        self.keep_ratio = fixed is None
        self.pad_divisor = transform.size_divisible
        self.mean, self.std = ([255 * one for one in part] for part in (transform.image_mean, transform.image_std))

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C, h, w)."""
        return list(self.detector.backbone(images).values())


def build_torchvision_teacher(reference: str, *, checkpoint: Path | None, device: torch.device) -> TorchvisionTeacher:
    """The teacher of `torchvision:NAME`, in eval mode, without gradients.

    Args:
        reference: its name, with the prefix.
        checkpoint: a file of its state, `.pth` or `.safetensors`; None: torchvision's own, which are downloaded once.
        device: where it runs.

    Raises:
        InputError: there is no such detector, or the checkpoint does not fit.
        UnavailableError: the weights cannot be downloaded.
    """
    # Not at the top: it takes half a second.
    from torchvision.models import detection, get_model, get_model_weights, list_models

    name = reference.removeprefix(PREFIX)
    names = list_models(module=detection)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3) or names
        raise InputError(f'teacher {reference}: torchvision has no detector {name}; it has {", ".join(close)}')
    if checkpoint is None:
        try:
            model = get_model(name, weights=get_model_weights(name).DEFAULT)
        except Exception as error:  # of the network, and of files that arrive incomplete
            text = str(error).strip().split('\n', maxsplit=1)[0][:200]
            raise UnavailableError(
                f'teacher {reference}: its weights cannot be downloaded ({text}); give --checkpoint FILE'
            ) from error
    else:
        model = get_model(name, weights=None, weights_backbone=None)
        try:
            model.load_state_dict(_state(checkpoint))
        except Exception as error:  # each kind of file has errors of its own
            text = ' '.join(str(error).split())[:200]
            raise InputError(
                f'teacher {reference}: {checkpoint} does not fit it: {text}; for other classes use FILE.py:CALLABLE'
            ) from error
    return TorchvisionTeacher(model).to(device).eval().requires_grad_(False)


def _state(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a file; nothing is unpickled."""
    if checkpoint.suffix == '.safetensors':
        import safetensors.torch

        return safetensors.torch.load_file(checkpoint)
    content: dict[str, Any] = torch.load(checkpoint, map_location='cpu', weights_only=True)
    nested: dict[str, Tensor] = content.get('model', content.get('state_dict', content))
    return nested
