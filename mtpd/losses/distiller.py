"""All distillation losses of a stage, with the layers that they train.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.errors import InputError
from mtpd.geometry import Level
from mtpd.kernels.weighted_mse import WeightedError, weighted_mses
from mtpd.losses.maps import resize_map
from mtpd.losses.masked_mse import masked_variances
from mtpd.losses.match import LevelPair, match_levels
from mtpd.losses.objects import Objects
from mtpd.losses.options import LevelOptions, decay_factor

Maps = Mapping[str, Tensor]
Map = TypeVar('Map', Tensor, EncodedMaps)


class Distiller(nn.Module):
    """Compares the student's maps with the teacher's by every loss on every level.

    Its layers are trained with the student and thrown away after the stage: they are not part of `student.pth`.
    """

    def __init__(
        self,
        losses: Sequence[LevelOptions],
        *,
        student: Sequence[Level],
        teacher: Sequence[Level] | Mapping[str, Sequence[Level]],
        anchors: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Builds the layers; their first weights come from torch's global generator.

        Args:
            losses: the options of each.
            student: all levels of the student.
            teacher: all levels of the teacher; of several teachers by their names. Their maps are then given to
                `forward` by names such as `swin_s:p3`, and the losses are called `distill/masked_mse@swin_s/p3`.
            anchors: of the student's head, stride -> (A, 4), xyxy in px, around its first cell; for `fine_grained`.

        Raises:
            InputError: a level, its anchors or the teacher that a loss names are missing, strides differ and nothing
                is to be resized, or a loss acts twice on a level.
        """
        super().__init__()
        self._student = tuple(student)
        # By the keys of `losses`.
        self._parts: dict[str, tuple[LevelOptions, LevelPair]] = {}
        self.losses = nn.ModuleDict()
        teachers = teacher if isinstance(teacher, Mapping) else {'': teacher}
        for options in losses:
            if options.teacher is not None and options.teacher not in teachers:
                names = ', '.join(filter(None, teachers)) or 'one, which needs no name'
                raise InputError(f'{options.loss} names the teacher {options.teacher}, but the teachers are {names}')
            for name in teachers if options.teacher is None else [options.teacher]:
                for pair in match_levels(
                    student,
                    teachers[name],
                    levels=options.levels,
                    teacher_levels=options.teacher_levels,
                    resize=options.resize,
                ):
                    # A module's name has no dot.
                    key = (
                        f'{options.loss}@{name}/{pair.name}'.replace('.', '_')
                        if name
                        else f'{options.loss}/{pair.name}'
                    )
                    if key in self._parts:
                        raise InputError(f'distill lists {options.loss} on {pair.name} twice; remove one')
                    named = replace(pair, teacher=replace(pair.teacher, name=named_level(name, pair.teacher.name)))
                    self._parts[key] = options, named if name else pair
                    self.losses[key] = options.build(pair, anchors or {})

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, EncodedMaps | Tensor],
        masks: Mapping[str, Tensor],
        *,
        boxes: Sequence[Tensor] | None = None,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one batch, weighted and decayed: their sum is what joins the detection loss.

        A loss whose weight has decayed to 0 is 0 and not computed: its layers get no gradient.

        Half-precision student maps need an autocast region around this call, as any layer does.

        Args:
            student: level name -> (B, C of the student, H, W).
            teacher: level name -> codes or values (B, C of the teacher, H, W), of the same padded input.
            masks: level name -> bool (B, 1, H, W), True at cells that show the image; of all levels of both sides that
                are compared, and for losses that look at objects of all levels of the student.
            boxes: the objects of each image (N, 4), absolute xyxy in px of the padded input, mirrored where the view
                is; without crowds. Only losses that look at objects need them.
            progress: share of the stage that is done, from 0 to 1: what decaying weights depend on.
            generator: draws the cells that MGD hides; None for torch's global one.

        Returns:
            `distill/<loss>/<level>` -> scalar float32; `<level>` is `p3-p2` where p3 learns from another stride's p2.

        Raises:
            InputError: a map is missing or its shape is not the one that was announced; or the boxes are missing.
        """
        by_stride = {level.stride: masks[level.name] for level in self._student if level.name in masks}
        objects = None if boxes is None else Objects(boxes, by_stride)
        given = {name: one if isinstance(one, EncodedMaps) else EncodedMaps(one) for name, one in teacher.items()}
        factors: dict[str, float] = {}
        losses: dict[str, Tensor] = {}
        errors: dict[str, WeightedError] = {}
        varied: dict[str, tuple[EncodedMaps, Tensor]] = {}
        for key, (options, pair) in self._parts.items():
            factors[key] = options.factor(pair.compared) * decay_factor(options.decay, progress=progress)
            if factors[key] == 0:
                losses[key] = next(iter(masks.values())).new_zeros((), dtype=torch.float32)
                continue
            maps = _pair_maps(pair, student, given, masks)
            if options.looks_at_objects and (objects is None or len(objects.boxes) != len(maps[2])):
                raise InputError(f'{key} needs the boxes of the objects of each image; pass `boxes`')
            found = self.losses[key](*maps, objects=objects, generator=generator)
            if isinstance(found, WeightedError):
                errors[key] = found
            else:
                losses[key] = found
            if options.is_over_variance:
                varied[key] = maps[1:]
        # Together: each call has a price on the host.
        losses |= zip(errors, weighted_mses(list(errors.values())), strict=True)
        for key, variance in zip(varied, masked_variances(list(varied.values())), strict=True):
            losses[key] = losses[key] / variance
        return {f'distill/{key}': factor * losses[key] for key, factor in factors.items()}

    @property
    def teacher_levels(self) -> tuple[Level, ...]:
        """The teacher's levels that some loss compares, from the finest."""
        levels = {pair.teacher for _, pair in self._parts.values()}
        return tuple(sorted(levels, key=lambda level: (level.stride, level.name)))

    def decay_factors(self, *, progress: float) -> dict[str, float]:
        """What the weights of the decaying losses are multiplied by, by the names that `forward` gives the losses."""
        return {
            f'distill/{key}': decay_factor(options.decay, progress=progress)
            for key, (options, _) in self._parts.items()
            if options.decay.kind != 'none'
        }


def named_level(teacher: str, level: str) -> str:
    """What a level of one of several teachers is called."""
    return f'{teacher}:{level}'


def _pair_maps(
    pair: LevelPair, student: Maps, teacher: Mapping[str, EncodedMaps], masks: Maps
) -> tuple[Tensor, EncodedMaps, Tensor]:
    """The maps of a pair and their mask, of shapes that fit; where the strides differ one map is resized."""
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
    strides = pair.student.stride, pair.teacher.stride
    if pair.resize == 'student':
        student_map, valid = resize_map(student_map, student_mask, strides=strides, grid=teacher_map.shape[2:])
        return student_map, teacher_map, teacher_mask & valid
    resized, valid = resize_map(teacher_map.values(), teacher_mask, strides=strides[::-1], grid=student_map.shape[2:])
    return student_map, EncodedMaps(resized), student_mask & valid


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
