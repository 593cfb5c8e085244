"""Configuration of losses that use the boxes of objects; the others are in `terms`. Does not import torch."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from mtpd.losses.level_term import Adapter, LevelTerm, Normalize, Scale


@dataclass(frozen=True)
class FineGrainedTerm(LevelTerm):
    """Fine-grained feature imitation: squared error where anchors are near objects; see `fine_grained`.

    Attributes:
        weight: factor of the loss, a mean over cells and channels: the released code's 0.01 with 256 channels.
        threshold: psi, the share of its greatest IoU that an object asks of an anchor.
        reference: over which anchors the greatest is taken: those of the `level`, or of the student's whole `pyramid`.
        adapter: the authors have one everywhere.
    """

    loss: ClassVar[str] = 'fine_grained'

    weight: float = 1.28
    threshold: float = 0.5
    reference: Literal['level', 'pyramid'] = 'level'
    adapter: Adapter = 'always'
    scale: Scale = 'none'


@dataclass(frozen=True)
class TarFeatureTerm(LevelTerm):
    """TAR's feature level: squared error under a Gaussian mask of the objects. See `mtpd.losses.objects.tar_feature`.

    Attributes:
        weight: factor of the loss; the paper's own is not known to us.
        spread: widths of the Gaussian, in half widths and half heights of its box.
        adapter: the paper has one everywhere.
        decay: TAR's is linear.
    """

    loss: ClassVar[str] = 'tar_feature'

    spread: tuple[float, float] = (2.0, 2.0)
    adapter: Adapter = 'always'
    scale: Scale = 'teacher_std'


@dataclass(frozen=True)
class FgdTerm(LevelTerm):
    """Focal and global distillation; the defaults are the published ones for RetinaNet. See `mtpd.losses.objects.fgd`.

    Attributes:
        weight: factor of the whole loss.
        foreground, background, attention, relation: factors of its parts: the paper's alpha, beta, gamma and lambda.
        temperature: what magnitudes are divided by before the softmaxes of the attentions.
        normalize: what these factors belong to.
    """

    loss: ClassVar[str] = 'fgd'

    foreground: float = 1e-3
    background: float = 5e-4
    attention: float = 1e-3
    relation: float = 5e-6
    temperature: float = 0.5
    normalize: Normalize = 'published'


ObjectTerm = FineGrainedTerm | TarFeatureTerm | FgdTerm
