"""Records that contradict themselves or their tensors make no head."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from mtpd.heads.roi_head import RoiHead, RoiHeadRecord, head_tensors, tensor_shapes

MakeRecord = Callable[..., RoiHeadRecord]
MakeWeights = Callable[[RoiHeadRecord], dict[str, Tensor]]


@pytest.mark.parametrize(
    'changes',
    [
        {'prefix': 'backbone.'},
        {'strides': ()},
        {'strides': (0,)},
        {'strides': (4,) * 9},
        {'finest_scale': math.inf},
        {'finest_scale': 0.0},
        {'output_size': 65},
        {'output_size': '3'},
        {'output_size': True},
        {'sampling_ratio': 1000},
        {'sampling_ratio': -1},
        {'num_fcs': 10**6},
        {'num_classes': 0},
        {'in_channels': 2**15},
        {'class_agnostic': 'yes'},
        {'means': (0.0, 0.0, 0.0)},
        {'means': (math.nan, 0.0, 0.0, 0.0)},
        {'stds': (0.0, 1.0, 1.0, 1.0)},
        {'code': 'print()'},
    ],
)
def test_impossible_values(make_record: MakeRecord, changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_record(**changes)


@pytest.mark.parametrize(
    ('changes', 'problem'),
    [
        ({'num_convs': 2, 'num_groups': 5}, '5 groups do not divide 6 channels'),
        ({'strides': (8, 4, 16, 32)}, 'strides'),
        ({'strides': (4, 4, 16, 32)}, 'strides'),
        ({'num_classes': 4}, 'fc_cls.weight'),
        ({'class_agnostic': True}, 'fc_reg.weight'),
        ({'output_size': 7}, 'shared_fcs.0.weight'),
        ({'num_fcs': 1}, 'shared_fcs.1.weight is .*, expected unknown'),
        ({'num_fcs': 3}, 'shared_fcs.2.weight is missing'),
        ({'num_convs': 1}, 'shared_convs.0'),
        ({'prefix': 'roi_head.bbox_head.0.'}, 'is missing'),
    ],
)
def test_records_of_other_tensors(
    make_record: MakeRecord, make_weights: MakeWeights, changes: dict[str, Any], problem: str
) -> None:
    weights = make_weights(make_record())
    with pytest.raises(ValueError, match=problem):
        RoiHead(make_record(**changes), weights)


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_tensors_that_are_not_finite(make_record: MakeRecord, make_weights: MakeWeights, value: float) -> None:
    weights = make_weights(make_record())
    weights['roi_head.bbox_head.fc_cls.bias'][0] = value
    with pytest.raises(ValueError, match='finite'):
        head_tensors(make_record(), weights)


def test_tensors_of_whole_numbers(make_record: MakeRecord, make_weights: MakeWeights) -> None:
    weights = make_weights(make_record())
    weights['roi_head.bbox_head.fc_cls.bias'] = torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match='finite'):
        head_tensors(make_record(), weights)


@pytest.mark.parametrize('num_groups', [0, 2])
@pytest.mark.parametrize('num_fcs', [0, 1, 2])
def test_every_kind_takes_its_own_tensors(
    make_record: MakeRecord, make_weights: MakeWeights, num_groups: int, num_fcs: int
) -> None:
    record = make_record(num_convs=2, num_groups=num_groups, num_fcs=num_fcs)
    head = RoiHead(record, make_weights(record))
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == tensor_shapes(record)
    maps = [torch.randn(1, 4, 64 // stride, 64 // stride) for stride in record.strides]
    assert head(maps, torch.tensor([[0, 3.0, 4.0, 50.0, 60.0]])).logits.isfinite().all()
