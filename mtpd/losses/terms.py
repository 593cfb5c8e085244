"""What a distillation loss is asked to be: one value per entry of a stage's `distill` list. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mtpd.losses.decay import NO_DECAY, Decay
from mtpd.losses.match import Resize

Adapter = Literal['auto', 'always']
Scale = Literal['teacher_std', 'none']
Normalize = Literal['mean', 'published']


@dataclass(frozen=True)
class MaskedMseTerm:
    """FitNet's loss: mean squared error behind a 1x1 adapter.

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels: the teacher's level for each of `levels`, one by one; None for those of the same strides.
        resize: `student` or `teacher`: brings this one's map to the grid of the other where their strides differ.
        weight: factor of the loss.
        adapter: `auto`: a 1x1 adapter where the channels differ; `always`: everywhere.
        scale: `teacher_std`: maps are measured in standard deviations of the teacher's level over the batch, so that 1
            is the loss of a student that knows only each channel's mean; `none`: as they are.
        decay: how the weight falls during a stage.
    """

    loss: ClassVar[str] = 'masked_mse'

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 1.0
    adapter: Adapter = 'auto'
    scale: Scale = 'teacher_std'
    decay: Decay = NO_DECAY


@dataclass(frozen=True)
class MgdTerm:
    """Masked generative distillation; the defaults are the published ones for RetinaNet (Mask R-CNN: 5e-7 and 0.45).

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels, resize: as for `MaskedMseTerm`.
        weight: factor of the loss.
        mask_ratio: share of the student's cells that are hidden.
        normalize: what `weight` belongs to. `published`: MGD's sum over channels and cells at 800x1088 px, whatever the
            size of the input (see `mtpd.losses.mgd.published_elements`); `mean`: the mean over them.
        scale: as for `MaskedMseTerm`.
        decay: how the weight falls during a stage.
    """

    loss: ClassVar[str] = 'mgd'

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 2e-5
    mask_ratio: float = 0.65
    normalize: Normalize = 'published'
    scale: Scale = 'none'
    decay: Decay = NO_DECAY


@dataclass(frozen=True)
class PkdTerm:
    """Pearson knowledge distillation; the weight is the one published for RetinaNet (Faster R-CNN, Mask R-CNN: 6).

    The authors leave out RetinaNet's p7 (`levels: [p3, p4, p5, p6]`).

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels, resize: as for `MaskedMseTerm`.
        weight: factor of the loss, one minus the correlation.
        adapter: as for `MaskedMseTerm`; the authors have none.
        decay: how the weight falls during a stage.
    """

    loss: ClassVar[str] = 'pkd'

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 10.0
    adapter: Adapter = 'auto'
    decay: Decay = NO_DECAY


@dataclass(frozen=True)
class CwdTerm:
    """Channel-wise distillation; the defaults are mmrazor's for the feature pyramids of all its detectors.

    The paper's own, for segmentation, are to the best of our knowledge temperature 4 and weight 50 on features.

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels, resize: as for `MaskedMseTerm`.
        weight: factor of the loss.
        temperature: what the features are divided by before the softmax over cells.
        adapter: as for `MaskedMseTerm`; the published detectors have none.
        decay: how the weight falls during a stage.
    """

    loss: ClassVar[str] = 'cwd'

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 10.0
    temperature: float = 1.0
    adapter: Adapter = 'auto'
    decay: Decay = NO_DECAY
