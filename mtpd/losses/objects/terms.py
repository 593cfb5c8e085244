"""What a loss that knows where the objects are is asked to be; the others are in `terms`. Imports no torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mtpd.losses.decay import NO_DECAY, Decay
from mtpd.losses.match import Resize
from mtpd.losses.terms import Adapter, Normalize, Scale


@dataclass(frozen=True)
class FineGrainedTerm:
    """Fine-grained feature imitation: squared error where anchors are near objects; see `fine_grained`.

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels, resize: as for `MaskedMseTerm`.
        weight: factor of the loss, a mean over cells and channels: the released code's 0.01 with 256 channels.
        threshold: psi, the share of its greatest IoU that an object asks of an anchor.
        reference: over which anchors the greatest is taken: those of the `level`, or of the student's whole `pyramid`.
        adapter: as for `MaskedMseTerm`; the authors have one everywhere.
        scale: as for `MaskedMseTerm`.
        decay: how the weight falls during a stage.
    """

    loss: ClassVar[str] = 'fine_grained'

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 1.28
    threshold: float = 0.5
    reference: Literal['level', 'pyramid'] = 'level'
    adapter: Adapter = 'always'
    scale: Scale = 'none'
    decay: Decay = NO_DECAY


@dataclass(frozen=True)
class TarFeatureTerm:
    """TAR's feature level: squared error under a Gaussian mask of the objects. See `mtpd.losses.objects.tar_feature`.

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels, resize: as for `MaskedMseTerm`.
        weight: factor of the loss; the paper's own is not known to us.
        spread: widths of the Gaussian, in half widths and half heights of its box.
        adapter: as for `MaskedMseTerm`; the paper has one everywhere.
        scale: as for `MaskedMseTerm`.
        decay: how the weight falls during a stage; TAR's is linear.
    """

    loss: ClassVar[str] = 'tar_feature'

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 1.0
    spread: tuple[float, float] = (2.0, 2.0)
    adapter: Adapter = 'always'
    scale: Scale = 'teacher_std'
    decay: Decay = NO_DECAY


@dataclass(frozen=True)
class FgdTerm:
    """Focal and global distillation; the defaults are the published ones for RetinaNet. See `mtpd.losses.objects.fgd`.

    Attributes:
        loss: its name in stage files and logs.
        levels: names of the levels it acts on; None for all that student and teacher share.
        teacher_levels, resize: as for `MaskedMseTerm`.
        weight: factor of the whole loss.
        foreground, background, attention, relation: factors of its parts: the paper's alpha, beta, gamma and lambda.
        temperature: what magnitudes are divided by before the softmaxes of the attentions.
        normalize: what these factors belong to. `published`: the paper's sums at 800x1088 px, whatever the size of the
            input; `mean`: means over cells and channels.
        decay: how the weight falls during a stage.
    """

    loss: ClassVar[str] = 'fgd'

    levels: tuple[str, ...] | None = None
    teacher_levels: tuple[str, ...] | None = None
    resize: Resize = 'none'
    weight: float = 1.0
    foreground: float = 1e-3
    background: float = 5e-4
    attention: float = 1e-3
    relation: float = 5e-6
    temperature: float = 0.5
    normalize: Normalize = 'published'
    decay: Decay = NO_DECAY


ObjectTerm = FineGrainedTerm | TarFeatureTerm | FgdTerm
