"""The safetensors files of a cache: the rotations of the `lean` codec, and the teacher's neck and head."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from mtpd.cache.format.strict_json import StrictRecord, first_problem, short
from mtpd.errors import CacheDamagedError, CacheMismatchError
from mtpd.geometry import Level
from mtpd.heads.roi_head import RoiHead, RoiHeadRecord
from mtpd.system.files import canonical_json, sha256_bytes

BASIS_FILE = 'basis.safetensors'
METADATA_KEY = 'mtpd'
HEADER_BYTES = 1024
# Of the entries of B^T B from those of 1, in float32.
MAX_DEVIATION = 1e-3


class _TeacherMetadata(StrictRecord):
    roi_head: RoiHeadRecord


def save_basis(bases: Mapping[str, Tensor], *, plan: str) -> bytes:
    """The bases of all levels as a file that states its hash and that of the plan it was made for."""
    tensors = {name: basis.contiguous() for name, basis in sorted(bases.items())}
    return _save(tensors, {'plan': plan, 'sha256': _digest(tensors)})


def max_basis_bytes(levels: Sequence[Level]) -> int:
    """What a file of `save_basis` takes at most."""
    return sum(4 * level.channels**2 + HEADER_BYTES for level in levels) + HEADER_BYTES


def load_basis(content: bytes, levels: Sequence[Level], *, name: str) -> dict[str, Tensor]:
    """Level name -> basis (C, C) float32; CacheDamagedError for other levels, another content, or no rotation."""
    try:
        tensors = safetensors.torch.load(content)
        stated = json.loads(_stated(content))['sha256']
    except (SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CacheDamagedError(f'{name}: cannot be read ({error}); extract the cache again') from error
    wanted = {level.name: (torch.Size((level.channels, level.channels)), torch.float32) for level in levels}
    found = {level: (values.shape, values.dtype) for level, values in tensors.items()}
    if found != wanted or stated != _digest(tensors):
        raise CacheDamagedError(f'{name}: its content differs from what was written; extract the cache again')
    for level, basis in tensors.items():
        # Losses compare codes in the directions of the basis: in another one squared errors would not be those of maps.
        deviation = float((basis.T @ basis - torch.eye(len(basis))).abs().max())
        if not deviation < MAX_DEVIATION:
            raise CacheDamagedError(
                f'{name}: the basis of {level} is not orthonormal (B^T B differs from the identity by '
                f'{deviation:.2g}, expected at most {MAX_DEVIATION:g}); extract the cache again'
            )
    return tensors


def plan_of_basis(content: bytes) -> str | None:
    """Hash of the plan that a file of `save_basis` was made for; None where it does not say."""
    try:
        return str(json.loads(_stated(content))['plan'])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return None


def save_teacher(weights: Mapping[str, Tensor], *, roi_head: RoiHeadRecord | None = None) -> bytes:
    """Parameters and buffers by their names in the teacher, and how its RoI head is built, as a file."""
    return _save(dict(weights), None if roi_head is None else {'roi_head': roi_head.model_dump(mode='json')})


def load_teacher(content: bytes, *, name: str) -> tuple[dict[str, Tensor], RoiHeadRecord | None]:
    """What `save_teacher` took; None: no RoI head that can be run is on record.

    CacheDamagedError where the file holds no tensors, or a record of another origin.
    """
    try:
        weights = dict(safetensors.torch.load(content))
        stated = _stated(content)
    # Beside its own error, safetensors lets through what it meets in torch: a KeyError for an unknown dtype.
    except (SafetensorError, KeyError, RecursionError, RuntimeError, ValueError) as error:
        raise CacheDamagedError(f'{name}: holds no tensors ({short(error)})') from error
    if stated is None:
        return weights, None
    try:
        return weights, _TeacherMetadata.model_validate_json(stated).roi_head
    except ValidationError as error:
        raise CacheDamagedError(f'{name}: {first_problem(error)}; extract the cache again') from error


def load_roi_head(content: bytes, *, name: str) -> RoiHead:
    """The RoI head of what `save_teacher` wrote; raises what `CacheReader.roi_head` does."""
    weights, record = load_teacher(content, name=name)
    if record is None:
        if not any(one.startswith('roi_head.') for one in weights):
            raise CacheMismatchError(f'{name}: its teacher has no RoI head; use the cache of a two-stage teacher')
        raise CacheMismatchError(
            f"{name}: has no record of its teacher's RoI head: it was extracted by an older mtpd, or the head "
            'is not supported by mtpd; extract the cache again, or choose another loss'
        )
    try:
        return RoiHead(record, weights)
    except ValueError as error:
        raise CacheDamagedError(f'{name}: {short(error, length=200)}; extract the cache again') from error


def _save(tensors: dict[str, Tensor], facts: dict[str, Any] | None) -> bytes:
    # One entry: safetensors writes several in an order that changes from run to run.
    metadata = None if facts is None else {METADATA_KEY: canonical_json(facts).decode()}
    return safetensors.torch.save(tensors, metadata=metadata)


def _stated(content: bytes) -> Any:
    """The JSON text of the facts in a file; None without."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    return (header.get('__metadata__') or {}).get(METADATA_KEY)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    return sha256_bytes(b''.join(tensors[name].contiguous().numpy().tobytes() for name in sorted(tensors)))
