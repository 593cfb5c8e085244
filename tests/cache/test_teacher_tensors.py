"""The teacher's file: tensors and a record, written byte for byte alike, and refused when they contradict."""

import json
from typing import Any

import pytest
import safetensors.torch
import torch

from mtpd.cache.format.tensor_files import load_roi_head, load_teacher, save_teacher
from mtpd.errors import CacheDamagedError, CacheMismatchError
from mtpd.heads.roi_head import RoiHeadRecord, tensor_shapes

RECORD = RoiHeadRecord(
    prefix='roi_head.bbox_head.',
    strides=(4, 8),
    finest_scale=56.0,
    output_size=2,
    sampling_ratio=0,
    aligned=True,
    in_channels=3,
    num_convs=0,
    conv_channels=1,
    num_groups=0,
    num_fcs=1,
    fc_channels=5,
    num_classes=4,
    class_agnostic=True,
    means=(0.0, 0.0, 0.0, 0.0),
    stds=(0.1, 0.1, 0.2, 1 / 3),
)
WEIGHTS = {RECORD.prefix + name: torch.randn(shape) for name, shape in tensor_shapes(RECORD).items()} | {
    'neck.weight': torch.arange(3.0),
    'neck.count': torch.tensor(7),
}


def stating(content: Any) -> bytes:
    """The file with another record."""
    text = content if isinstance(content, str) else json.dumps(content)
    return safetensors.torch.save(WEIGHTS, metadata={'mtpd': text})


def test_there_and_back() -> None:
    content = save_teacher(WEIGHTS, roi_head=RECORD)
    weights, roi_head = load_teacher(content, name='file')
    assert roi_head == RECORD
    assert weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(value, weights[name]) for name, value in WEIGHTS.items())
    # A resumed extraction finds the very file that it would write.
    assert save_teacher(weights, roi_head=roi_head) == content
    head = load_roi_head(content, name='file')
    assert torch.equal(head.fc_cls.weight, WEIGHTS['roi_head.bbox_head.fc_cls.weight'])


def test_without_a_record_it_is_the_file_of_earlier_versions() -> None:
    plain = safetensors.torch.save(WEIGHTS)
    assert save_teacher(WEIGHTS) == plain
    assert load_teacher(plain, name='file')[1] is None
    with pytest.raises(CacheMismatchError, match=r'file: has no record of .*; extract the cache again'):
        load_roi_head(plain, name='file')


def test_a_teacher_without_a_roi_head() -> None:
    with pytest.raises(CacheMismatchError, match='has no RoI head'):
        load_roi_head(save_teacher({'bbox_head.weight': torch.ones(1)}), name='file')


@pytest.mark.parametrize(
    'content',
    [
        '',
        'null',
        '[]',
        '{',
        '{}',
        '[' * 5000,
        {'roi_head': None},
        {'roi_head': {}},
        {'roi_head': RECORD.model_dump() | {'run': 'os.system'}},
        {'roi_head': RECORD.model_dump() | {'num_fcs': 10**9}},
        {'roi_head': RECORD.model_dump() | {'stds': ['0.1', 1, 1, 1]}},
        {'roi_head': RECORD.model_dump(), 'more': 1},
        json.dumps({'roi_head': RECORD.model_dump()}).replace('56.0', 'NaN'),
    ],
)
def test_hostile_records(content: Any) -> None:
    with pytest.raises(CacheDamagedError, match=r'^file: [^\n]*extract the cache again$'):
        load_teacher(stating(content), name='file')


@pytest.mark.parametrize('changes', [{'in_channels': 2**14}, {'num_fcs': 2}, {'num_classes': 2**14}])
def test_records_that_contradict_the_tensors(changes: dict[str, int]) -> None:
    content = stating({'roi_head': RECORD.model_dump() | changes})
    with pytest.raises(CacheDamagedError, match='expected'):
        load_roi_head(content, name='file')


@pytest.mark.parametrize('content', [b'', b'\x00' * 8, b'\xff' * 64])
def test_no_tensors(content: bytes) -> None:
    with pytest.raises(CacheDamagedError, match='holds no tensors'):
        load_teacher(content, name='file')
