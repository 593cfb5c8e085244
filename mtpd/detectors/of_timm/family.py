"""timm's backbones by their names."""

from dataclasses import replace
from pathlib import Path

import torch

from mtpd.detectors.hook_points import HookChoice
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.of_timm.backbone import build_timm_teacher
from mtpd.detectors.teachers import Teacher, teacher_of_module


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
    teacher = teacher_of_module(reference, module, [reference, module.indices], options=options, device=device)
    return replace(teacher, license=module.license)
