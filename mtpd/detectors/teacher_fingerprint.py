"""What must be equal for two teachers to give the same maps."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mtpd.detectors.teachers import Teacher


def teacher_fingerprint(teacher: Teacher) -> dict[str, Any]:
    """The network, how it is run, and the normalisation of its inputs; geometry and levels stand elsewhere."""
    return {
        'teacher': {
            'weights': state_sha256(teacher.module.state_dict()),
            'definition': teacher.definition_sha256,
            'hook_point': teacher.hook_point,
            'mode': 'eval',
            'precision': _precision(),
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


def _precision() -> dict[str, str]:
    """How the GPU computes float32, which is what teachers run in; `none` leaves it to the wider setting."""
    return {
        'dtype': 'float32',
        'all': torch.backends.fp32_precision,  # type: ignore[attr-defined]
        'matmul': torch.backends.cuda.matmul.fp32_precision,
        'convolution': torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    }
