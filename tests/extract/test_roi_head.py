"""What `mtpd-extract` keeps of a two-stage teacher's RoI head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.cache.format.manifest import TEACHER_FILE
from mtpd.cache.format.tensor_files import load_teacher
from mtpd.cache.writing.plan_file import read_plan_file
from mtpd.errors import CacheMismatchError
from mtpd.system.files import sha256_bytes

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope='module')
def two_stage(
    make_command: Callable[..., Any], synthetic_set: Path, tiny_two_stage: Path, random_weights: Callable[..., Path]
) -> Any:
    """Extracts a tiny Faster R-CNN in several shards."""
    options = ['--checkpoint', random_weights(tiny_two_stage), '--views', 'plain', '--shard-mb', '0.05']
    return make_command(tiny_two_stage, synthetic_set, options)


def test_the_record_is_kept(tmp_path: Path, two_stage: Any) -> None:
    two_stage.run(tmp_path / 'cache')
    head = mtpd.cache.open(tmp_path / 'cache').roi_head()
    record = head.record
    assert (record.strides, record.num_classes, record.output_size) == ((4, 8, 16, 32), 6, 5)
    assert (record.finest_scale, record.stds) == (14.0, (0.1, 0.1, 0.2, 0.2))
    assert not head.fc_cls.weight.requires_grad


def test_a_one_stage_teacher_has_none(whole: Path) -> None:
    content = (whole / TEACHER_FILE).read_bytes()
    assert load_teacher(content, name=TEACHER_FILE)[1] is None
    with pytest.raises(CacheMismatchError, match='no RoI head'):
        mtpd.cache.open(whole).roi_head()


def test_an_extraction_goes_on_byte_for_byte(tmp_path: Path, two_stage: Any, contents: Contents) -> None:
    two_stage.run(tmp_path / 'whole')
    two_stage.run(tmp_path / 'parts', '--part', '1/2')
    planned = read_plan_file(tmp_path / 'parts').files[TEACHER_FILE]
    content = (tmp_path / 'parts' / TEACHER_FILE).read_bytes()
    assert planned.sha256 == sha256_bytes(content)
    assert load_teacher(content, name='file')[1] is not None
    two_stage.run(tmp_path / 'parts')
    assert contents(tmp_path / 'parts') == contents(tmp_path / 'whole')


def test_another_teacher_is_still_refused(
    tmp_path: Path, two_stage: Any, tiny_two_stage: Path, random_weights: Callable[..., Path]
) -> None:
    two_stage.run(tmp_path / 'cache', '--part', '1/2')
    other = tmp_path / 'other.pth'
    state = torch.load(random_weights(tiny_two_stage), weights_only=True)['state_dict']
    state['roi_head.bbox_head.fc_cls.bias'] += 1
    torch.save({'state_dict': state}, other)
    assert 'fingerprint.teacher.weights' in two_stage.error(tmp_path / 'cache', '--checkpoint', other)
