"""What all terms of losses that compare maps level by level have in common. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mtpd.losses.decay import NO_DECAY, Decay
from mtpd.losses.match import Resize

# `auto`: a 1x1 adapter where the channels differ; `always`: everywhere.
Adapter = Literal['auto', 'always']
# `teacher_std`: maps are measured in standard deviations of the teacher's level over the batch, so that 1 is the loss
# of a student that knows only each channel's mean; `none`: as they are.
Scale = Literal['teacher_std', 'none']
# What weights belong to. `published`: the paper's sums over channels and cells at 800x1088 px, for any size of the
# input (see `mtpd.losses.mgd.published_elements`); `mean`: means over them.
Normalize = Literal['mean', 'published']


@dataclass(frozen=True)
class LevelTerm:
    """Where a loss acts and how much it counts; the term of a loss adds the options that are its own.

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels: the teacher's level for each of `levels`, one by one; None for those of the same names.
        resize: `student` or `teacher`: brings this one's map to the grid of the other where their strides differ.
        weight: factor of the loss.
        decay: how the weight falls during a stage.
    """

    loss: ClassVar[str]

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 1.0
    decay: Decay = NO_DECAY
