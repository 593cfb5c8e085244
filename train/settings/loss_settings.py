"""What an entry of a stage's `distill` list may say: one kind of settings for each loss."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from mtpd_train.settings.loss_options import DecaySettings
from mtpd_train.settings.map_loss_settings import CwdSettings, MaskedMseSettings, MgdSettings, PkdSettings
from mtpd_train.settings.object_loss_settings import FgdSettings, FineGrainedSettings, TarFeatureSettings
from mtpd_train.settings.section import Section


class TarHeadSettings(Section):
    """TAR's responses: classes and boxes of RoIs, as the teacher's RoI head sees them. For two-stage detectors."""

    loss: Literal['tar_head']
    """Kind of this loss."""
    mode: Literal['head_on_gpu', 'cached_rois'] = 'head_on_gpu'
    """`head_on_gpu`: the teacher's head judges the student's proposals; `cached_rois`: the student's the teacher's."""
    class_weight: NonNegativeFloat = 1.0
    """Factor of the class term, a divergence averaged over RoIs."""
    box_weight: NonNegativeFloat = 1.0
    """Factor of the box term, an L1 distance of deltas averaged over the RoIs that its gate lets pass."""
    temperature: PositiveFloat = 1.0
    """What class logits are divided by."""
    class_gate: Literal['better', 'none'] = 'better'
    """`better`: learn classes where the teacher is surer of the true class than the student; `none`: everywhere."""
    box_gate: Literal['proposal', 'student', 'none'] = 'proposal'
    """Learn boxes where the teacher's overlaps the object more than `proposal` or `student` does; `none`: of all."""
    positive_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """IoU with an object from which a RoI is positive."""
    decay: DecaySettings = DecaySettings(kind='linear')
    """How the weights fall during the stage."""


# What compares maps, level by level.
LevelLossSettings = (
    MaskedMseSettings | MgdSettings | PkdSettings | CwdSettings | FineGrainedSettings | TarFeatureSettings | FgdSettings
)
DistillSettings = Annotated[LevelLossSettings | TarHeadSettings, Field(discriminator='loss')]
