"""All distillation losses of a stage, with the layers that they train.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtpd.errors import InputError
from mtpd.losses.decay import Decay, decay_factor
from mtpd.losses.level_loss import Term, build_loss, constant_factor, is_over_variance
from mtpd.losses.masked_variance import masked_variance
from mtpd.losses.match import LevelPair, match_levels
from mtpd.losses.mgd import MaskedGenerativeDistillation
from mtpd.losses.objects.boxes import Objects
from mtpd.losses.objects.fgd import FocalGlobalDistillation
from mtpd.losses.objects.object_mse import ObjectMse
from mtpd.losses.pair_maps import pair_maps
from mtpd.losses.teacher_map import TeacherMap
from mtpd.pyramid import Level


@dataclass(frozen=True)
class _Part:
    """One term on one level; `factor` turns what its module gives into the loss, after the division by a variance."""

    key: str
    pair: LevelPair
    factor: float
    over_variance: bool
    decay: Decay

    @property
    def name(self) -> str:
        return f'distill/{self.key}'


class Distiller(nn.Module):
    """Compares the student's maps with the teacher's by every term on every level.

    Its layers are trained with the student and thrown away after the stage: they are not part of `student.pth`.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        *,
        student: Sequence[Level],
        teacher: Sequence[Level],
        anchors: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Builds the layers; their first weights come from torch's global generator.

        Args:
            terms: the losses.
            student: all levels of the student.
            teacher: all levels of the teacher.
            anchors: of the student's head, stride -> (A, 4), xyxy in px, around its first cell; for `fine_grained`.

        Raises:
            InputError: a level or its anchors are missing, strides differ and nothing is to be resized, or a loss acts
                twice on a level.
        """
        super().__init__()
        self._student = tuple(student)
        self._parts: list[_Part] = []
        self.losses = nn.ModuleDict()
        for term in terms:
            pairs = match_levels(
                student, teacher, wanted=term.levels, teacher_wanted=term.teacher_levels, resize=term.resize
            )
            for pair in pairs:
                key = f'{term.loss}/{pair.name}'
                if key in self.losses:
                    raise InputError(f'distill lists {term.loss} on {pair.name} twice; remove one')
                factor, over_variance = constant_factor(term, pair.compared), is_over_variance(term)
                self._parts.append(_Part(key, pair, factor, over_variance, term.decay))
                self.losses[key] = build_loss(term, pair, anchors=anchors or {})

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, TeacherMap | Tensor],
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
        given = {name: one if isinstance(one, TeacherMap) else TeacherMap(one) for name, one in teacher.items()}
        losses: dict[str, Tensor] = {}
        for part in self._parts:
            factor = part.factor * decay_factor(part.decay, progress=progress)
            if factor == 0:
                losses[part.name] = next(iter(masks.values())).new_zeros((), dtype=torch.float32)
                continue
            maps = pair_maps(part.pair, student, given, masks)
            module = self.losses[part.key]
            if isinstance(module, MaskedGenerativeDistillation):
                loss = module(*maps, generator=generator)
            elif isinstance(module, ObjectMse | FocalGlobalDistillation):
                if objects is None or len(objects.boxes) != len(maps[2]):
                    raise InputError(f'{part.key} needs the boxes of the objects of each image; pass `boxes`')
                loss = module(*maps, objects=objects)
            else:
                loss = module(*maps)
            if part.over_variance:
                loss = loss / masked_variance(maps[1], maps[2])
            losses[part.name] = factor * loss
        return losses

    @property
    def teacher_levels(self) -> tuple[Level, ...]:
        """The teacher's levels that some loss compares, from the finest."""
        return tuple(sorted({part.pair.teacher for part in self._parts}, key=lambda level: (level.stride, level.name)))

    def decay_factors(self, *, progress: float) -> dict[str, float]:
        """What the weights of the decaying losses are multiplied by, by the names that `forward` gives the losses."""
        decaying = [part for part in self._parts if part.decay.kind != 'none']
        return {part.name: decay_factor(part.decay, progress=progress) for part in decaying}
