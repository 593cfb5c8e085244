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
    """Name of the loss."""
    mode: Literal['head_on_gpu', 'cached_rois'] = 'head_on_gpu'
    """`head_on_gpu`: the teacher's head runs on the student's RoIs; `cached_rois`: the reverse, on cached RoIs."""
    class_weight: NonNegativeFloat = 1.0
    """Weight of the class term, a divergence averaged over RoIs."""
    box_weight: NonNegativeFloat = 1.0
    """Weight of the box term, an L1 distance of deltas averaged over the RoIs that `box_gate` selects."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature of the class logits."""
    class_gate: Literal['better', 'none'] = 'better'
    """RoIs of the class term. `better`: where the teacher is more confident in the true class; `none`: all."""
    box_gate: Literal['proposal', 'student', 'none'] = 'proposal'
    """RoIs of the box term: those where the teacher's IoU exceeds that of the `proposal` or `student`; `none`: all."""
    positive_iou: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Minimum IoU with an object for a RoI to be positive."""
    decay: DecaySettings = DecaySettings(kind='linear')
    """Decay of the weights during the stage."""


# What compares maps, level by level.
LevelLossSettings = (
    MaskedMseSettings | MgdSettings | PkdSettings | CwdSettings | FineGrainedSettings | TarFeatureSettings | FgdSettings
)
DistillSettings = Annotated[LevelLossSettings | TarHeadSettings, Field(discriminator='loss')]
