"""A tiny pyramid, RoIs on it, and the record and tensors of a head that fits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtpd.heads.roi_head import RoiHeadRecord, tensor_shapes

STRIDES = (4, 8, 16, 32)


@pytest.fixture(scope='session')
def make_record() -> Callable[..., RoiHeadRecord]:
    """`make_record(field=value, ...)` is the record of a tiny head."""

    def make(**changes: Any) -> RoiHeadRecord:
        fields: dict[str, Any] = {
            'prefix': 'roi_head.bbox_head.',
            'strides': STRIDES,
            'finest_scale': 56.0,
            'output_size': 3,
            'sampling_ratio': 0,
            'aligned': True,
            'in_channels': 4,
            'num_convs': 0,
            'conv_channels': 6,
            'num_groups': 0,
            'num_fcs': 2,
            'fc_channels': 8,
            'num_classes': 5,
            'class_agnostic': False,
            'means': (0.0, 0.0, 0.0, 0.0),
            'stds': (0.1, 0.1, 0.2, 0.2),
        }
        return RoiHeadRecord(**fields | changes)

    return make


@pytest.fixture(scope='session')
def make_weights() -> Callable[[RoiHeadRecord], dict[str, Tensor]]:
    """`make_weights(record)` are random tensors for it, among others of the teacher."""

    def make(record: RoiHeadRecord) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = tensor_shapes(record)
        weights = {record.prefix + name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return weights | {'neck.weight': torch.ones(3)}

    return make
