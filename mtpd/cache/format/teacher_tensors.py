"""The teacher's neck and head as a file: tensors, and beside them a record of how the RoI head is built."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from mtpd.cache.format.basis import METADATA_KEY
from mtpd.cache.format.manifest import first_problem
from mtpd.cache.format.strict_json import StrictRecord, short
from mtpd.errors import CacheDamagedError, CacheMismatchError
from mtpd.heads.roi_head import RoiHead, RoiHeadRecord
from mtpd.system.files import canonical_json


@dataclass(frozen=True)
class TeacherTensors:
    """What the file holds."""

    weights: dict[str, Tensor]  # parameters and buffers by their names in the teacher
    roi_head: RoiHeadRecord | None  # None: no head that can be run is on record


class _Metadata(StrictRecord):
    roi_head: RoiHeadRecord


def save_teacher(weights: Mapping[str, Tensor], *, roi_head: RoiHeadRecord | None = None) -> bytes:
    """The file's content; without a record that of the tensors alone."""
    if roi_head is None:
        return safetensors.torch.save(dict(weights))
    # One entry: safetensors writes several in an order that changes from run to run.
    stated = canonical_json(_Metadata(roi_head=roi_head).model_dump(mode='json')).decode()
    return safetensors.torch.save(dict(weights), metadata={METADATA_KEY: stated})


def load_teacher(content: bytes, *, name: str) -> TeacherTensors:
    """Reads what `save_teacher` wrote; CacheDamagedError where it holds no tensors, or a record of another origin."""
    try:
        weights = dict(safetensors.torch.load(content))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    # Beside its own error, safetensors lets through what it meets in torch: a KeyError for an unknown dtype.
    except (SafetensorError, KeyError, RecursionError, RuntimeError, ValueError) as error:
        raise CacheDamagedError(f'{name}: holds no tensors ({short(error)})') from error
    stated = (header.get('__metadata__') or {}).get(METADATA_KEY)
    if stated is None:
        return TeacherTensors(weights, None)
    try:
        return TeacherTensors(weights, _Metadata.model_validate_json(stated).roi_head)
    except ValidationError as error:
        raise CacheDamagedError(f'{name}: {first_problem(error)}; extract the cache again') from error


def load_roi_head(content: bytes, *, name: str) -> RoiHead:
    """The RoI head of what `save_teacher` wrote; raises what `CacheReader.roi_head` does."""
    teacher = load_teacher(content, name=name)
    if teacher.roi_head is None:
        if not any(one.startswith('roi_head.') for one in teacher.weights):
            raise CacheMismatchError(f'{name}: its teacher has no RoI head; use the cache of a two-stage teacher')
        raise CacheMismatchError(
            f"{name}: has no record of its teacher's RoI head: it was extracted by an older mtpd, or the head "
            'is not supported by mtpd; extract the cache again, or choose another loss'
        )
    try:
        return RoiHead(teacher.roi_head, teacher.weights)
    except ValueError as error:
        raise CacheDamagedError(f'{name}: {short(error, length=200)}; extract the cache again') from error
