"""The maps and the mask of a pair of levels, on one grid.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.losses.match import LevelPair
from mtpd.losses.resize import resize_map

Maps = Mapping[str, Tensor]
Map = TypeVar('Map', Tensor, EncodedMaps)


def pair_maps(
    pair: LevelPair, student: Maps, teacher: Mapping[str, EncodedMaps], masks: Maps
) -> tuple[Tensor, EncodedMaps, Tensor]:
    """Picks the maps of a pair and resizes one where their strides differ.

    Args:
        pair: the levels.
        student: level name -> (B, C, H, W).
        teacher: level name -> (B, C, H, W).
        masks: level name -> bool (B, 1, H, W).

    Returns:
        (B, C of the student, H, W), (B, C of the teacher, H, W) and bool (B, 1, H, W).

    Raises:
        InputError: a map is missing, or its shape is not the one that was announced.
    """
    student_map, student_mask = _pick(pair.student, 'student', student, masks)
    teacher_map, teacher_mask = _pick(pair.teacher, 'teacher', teacher, masks)
    if pair.student.stride == pair.teacher.stride:
        if student_map.shape[2:] != teacher_map.shape[2:]:
            raise InputError(
                f'{pair.name} has the grid {tuple(teacher_map.shape[2:])} in the teacher and '
                f'{tuple(student_map.shape[2:])} in the student; pad the teacher and the mask to the grid of '
                'the student'
            )
        return student_map, teacher_map, student_mask
    if pair.resize == 'student':
        student_map, valid = _resize(student_map, student_mask, pair.student, teacher_map.shape, pair.teacher)
        return student_map, teacher_map, teacher_mask & valid
    resized, valid = _resize(teacher_map.values(), teacher_mask, pair.teacher, student_map.shape, pair.student)
    return student_map, EncodedMaps(resized), student_mask & valid


def _resize(
    values: Tensor, mask: Tensor, level: Level, target: torch.Size, target_level: Level
) -> tuple[Tensor, Tensor]:
    grid = target[2], target[3]
    return resize_map(values, mask, stride=level.stride, target_stride=target_level.stride, target_grid=grid)


def _pick(level: Level, owner: str, maps: Mapping[str, Map], masks: Maps) -> tuple[Map, Tensor]:
    """A level's map and mask, or an InputError that names the level and what is wrong with it."""
    for giver, given in ((owner, maps), ('masks', masks)):
        if level.name not in given:
            raise InputError(f'{giver} returns {", ".join(given) or "no level"}, but {level.name} is required')
    mask: Tensor = masks[level.name]
    found = maps[level.name]
    wanted = (mask.shape[0], level.channels, *mask.shape[2:])
    if mask.ndim != 4 or mask.shape[1] != 1 or found.shape != wanted:
        raise InputError(
            f'{level.name} of the {owner} has the shape {tuple(found.shape)}, expected {wanted} (batch, channels, '
            f'rows, columns) for a mask of {tuple(mask.shape)}; pad the teacher and the mask to the grid of the student'
        )
    return found, mask
