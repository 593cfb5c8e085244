"""Configuration of losses on a teacher's responses. Does not import torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mtpd.losses.decay import LINEAR_DECAY, Decay

Mode = Literal['head_on_gpu', 'cached_rois']
ClassGate = Literal['better', 'none']
BoxGate = Literal['proposal', 'student', 'none']


@dataclass(frozen=True)
class TarHeadTerm:
    """TAR's class and box terms; see `mtpd.losses.responses.tar_response` for what of it is certain.

    Attributes:
        loss: its name in stage files and logs.
        mode: `head_on_gpu`: the teacher's RoI head runs on its cached maps with the student's proposals, as in the
            paper; `cached_rois`: the student's RoI head runs on the teacher's cached proposals.
        class_weight, box_weight: factors of the terms; the paper's are not known to us.
        temperature: what logits are divided by in the class term.
        class_gate: RoIs whose classes are learned: `better`: where the teacher is surer of the true class than the
            student; `none`: all.
        box_gate: positive RoIs whose boxes are learned: `proposal`: where the teacher's box overlaps the object more
            than the proposal does; `student`: more than the student's box does; `none`: all.
        positive_iou: IoU with an object from which a RoI is positive.
        decay: how both weights fall during a stage; TAR's course is, to the best of our knowledge, linear.
    """

    loss: ClassVar[str] = 'tar_head'

    mode: Mode = 'head_on_gpu'
    class_weight: float = 1.0
    box_weight: float = 1.0
    temperature: float = 1.0
    class_gate: ClassGate = 'better'
    box_gate: BoxGate = 'proposal'
    positive_iou: float = 0.5
    decay: Decay = LINEAR_DECAY
