"""All distillation losses of a stage, with the layers that they train.

Legend: B batch, C channels, H W grid of a level.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mtpd.errors import InputError
from mtpd.losses.adapted import AdaptedLoss
from mtpd.losses.cwd import cwd
from mtpd.losses.decay import Decay, decay_factor
from mtpd.losses.masked_mse import masked_mse, masked_variance
from mtpd.losses.match import LevelPair, match_levels
from mtpd.losses.mgd import MaskedGenerativeDistillation, published_elements
from mtpd.losses.pkd import pkd
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm, Term
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

    Its layers are trained with the student and thrown away after the stage: they are no part of `student.pth`.
    """

    def __init__(self, terms: Sequence[Term], *, student: Sequence[Level], teacher: Sequence[Level]) -> None:
        """Builds the layers; their first weights come from torch's global generator.

        Args:
            terms: the losses.
            student: all levels of the student.
            teacher: all levels of the teacher's cache.

        Raises:
            InputError: a level is missing on one side, or a loss acts twice on a level.
        """
        super().__init__()
        self._parts: list[_Part] = []
        self.losses = nn.ModuleDict()
        for term in terms:
            for pair in match_levels(student, teacher, wanted=term.levels):
                key = f'{term.loss}/{pair.name}'
                if key in self.losses:
                    raise InputError(f'distill has {term.loss} on {pair.name} twice; keep one of them')
                factor, over_variance = _factor(term, pair.teacher), _over_variance(term)
                self._parts.append(_Part(key, pair, factor, over_variance, term.decay))
                self.losses[key] = _build_loss(term, pair)

    def forward(
        self,
        student: Mapping[str, Tensor],
        teacher: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        *,
        progress: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one batch, weighted and decayed: their sum is what joins the detection loss.

        Half-precision student maps need an autocast region around this call, as any layer does.

        Args:
            student: level name -> (B, C of the student, H, W).
            teacher: level name -> (B, C of the teacher, H, W), padded to the student's grid.
            masks: level name -> bool (B, 1, H, W), True at cells that show the image.
            progress: share of the stage that is done, from 0 to 1: what decaying weights depend on.
            generator: draws the cells that MGD hides; None for torch's global one.

        Returns:
            `distill/<loss>/<level>` -> scalar float32.

        Raises:
            InputError: a map is missing, or its shape is not the one that was announced.
        """
        losses: dict[str, Tensor] = {}
        for part in self._parts:
            maps = _pick(part.pair, student, teacher, masks)
            module = self.losses[part.key]
            if isinstance(module, MaskedGenerativeDistillation):
                loss = module(*maps, generator=generator)
            else:
                loss = module(*maps)
            if part.over_variance:
                loss = loss / masked_variance(maps[1], maps[2])
            losses[part.name] = part.factor * decay_factor(part.decay, progress=progress) * loss
        return losses

    def decay_factors(self, *, progress: float) -> dict[str, float]:
        """What the weights of the decaying losses are multiplied by, by the names that `forward` gives the losses."""
        decaying = [part for part in self._parts if part.decay.kind != 'none']
        return {part.name: decay_factor(part.decay, progress=progress) for part in decaying}


def _build_loss(term: Term, pair: LevelPair) -> nn.Module:
    channels = pair.student.channels, pair.teacher.channels
    if isinstance(term, MgdTerm):
        return MaskedGenerativeDistillation(*channels, mask_ratio=term.mask_ratio)
    if isinstance(term, PkdTerm):
        return AdaptedLoss(*channels, loss=pkd, adapter=term.adapter)
    if isinstance(term, CwdTerm):
        return AdaptedLoss(*channels, loss=partial(cwd, temperature=term.temperature), adapter=term.adapter)
    return AdaptedLoss(*channels, loss=masked_mse, adapter=term.adapter)


def _factor(term: Term, teacher: Level) -> float:
    if isinstance(term, MgdTerm) and term.normalize == 'published':
        return term.weight * published_elements(teacher)
    return term.weight


def _over_variance(term: Term) -> bool:
    # Correlations and softmaxes are no squares of features: only these have their scale.
    return isinstance(term, MaskedMseTerm | MgdTerm) and term.scale == 'teacher_std'


def _pick(
    pair: LevelPair, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps and the mask of a level, or an InputError that names the level and what is wrong with it."""
    for owner, maps in (('student', student), ('teacher', teacher), ('masks', masks)):
        if pair.name not in maps:
            raise InputError(f'{owner} gives {", ".join(maps) or "no level"}, but {pair.name} is to be distilled')
    student_map, teacher_map, mask = student[pair.name], teacher[pair.name], masks[pair.name]
    batch, _, height, width = student_map.shape
    wanted = {
        'student': (batch, pair.student.channels, height, width),
        'teacher': (batch, pair.teacher.channels, height, width),
        'mask': (batch, 1, height, width),
    }
    for owner, tensor in (('student', student_map), ('teacher', teacher_map), ('mask', mask)):
        if tensor.shape != wanted[owner]:
            raise InputError(
                f'{pair.name} of the {owner} has the shape {tuple(tensor.shape)}, wanted {wanted[owner]} (batch, '
                f'channels, rows, columns); pad the teacher and the mask to the grid of the student'
            )
    return student_map, teacher_map, mask
