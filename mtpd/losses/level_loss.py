"""From a term to the loss of one level: its module and what its result is multiplied by."""

from collections.abc import Mapping
from functools import partial

from torch import Tensor, nn

from mtpd.losses.adapted import AdaptedLoss, AdaptedMse
from mtpd.losses.cwd import cwd
from mtpd.losses.match import LevelPair
from mtpd.losses.mgd import MaskedGenerativeDistillation, published_elements
from mtpd.losses.objects.fgd import FgdWeights, FocalGlobalDistillation
from mtpd.losses.objects.fine_grained import AnchorWeights
from mtpd.losses.objects.object_mse import ObjectMse
from mtpd.losses.objects.tar_feature import gaussian_weights
from mtpd.losses.objects.terms import FgdTerm, FineGrainedTerm, ObjectTerm, TarFeatureTerm
from mtpd.losses.pkd import pkd
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm
from mtpd.pyramid import Level

Term = MaskedMseTerm | MgdTerm | PkdTerm | CwdTerm | ObjectTerm


def build_loss(term: Term, pair: LevelPair, *, anchors: Mapping[int, Tensor]) -> nn.Module:
    """The module of a term on one level; its first weights come from torch's global generator.

    Args:
        term: the loss.
        pair: the levels.
        anchors: of the student's head, see `AnchorWeights`; only `fine_grained` needs them.
    """
    channels = pair.student.channels, pair.teacher.channels
    if isinstance(term, MgdTerm):
        return MaskedGenerativeDistillation(*channels, mask_ratio=term.mask_ratio)
    if isinstance(term, PkdTerm):
        return AdaptedLoss(*channels, loss=pkd, adapter=term.adapter)
    if isinstance(term, CwdTerm):
        return AdaptedLoss(*channels, loss=partial(cwd, temperature=term.temperature), adapter=term.adapter)
    if isinstance(term, TarFeatureTerm):
        weigh = partial(gaussian_weights, stride=pair.stride, spread=term.spread)
        return ObjectMse(*channels, weigh=weigh, adapter=term.adapter)
    if isinstance(term, FineGrainedTerm):
        near = AnchorWeights(
            anchors,
            stride=pair.student.stride,
            target_stride=pair.stride,
            threshold=term.threshold,
            reference=term.reference,
        )
        return ObjectMse(*channels, weigh=near, adapter=term.adapter)
    if isinstance(term, FgdTerm):
        weights = _fgd_weights(term, pair.compared)
        return FocalGlobalDistillation(*channels, stride=pair.stride, weights=weights, temperature=term.temperature)
    return AdaptedMse(*channels, adapter=term.adapter)


def _fgd_weights(term: FgdTerm, level: Level) -> FgdWeights:
    """The factors of FGD's means: see `mtpd.losses.objects.fgd`."""
    channels = level.channels if term.normalize == 'published' else 1
    elements = published_elements(level) if term.normalize == 'published' else 1
    return FgdWeights(
        foreground=term.foreground * channels,
        background=term.background * channels,
        spatial_attention=term.attention * elements / channels,
        channel_attention=term.attention * channels,
        relation=term.relation * elements,
    )


def constant_factor(term: Term, level: Level) -> float:
    """What the module's result is multiplied by to become the loss; `level` is what is compared."""
    if isinstance(term, MgdTerm) and term.normalize == 'published':
        return term.weight * published_elements(level)
    return term.weight


def is_over_variance(term: Term) -> bool:
    """Whether the loss is divided by the teacher's variance."""
    # Correlations, softmaxes and attentions are not squares of features: only squares have their scale.
    squares = MaskedMseTerm | MgdTerm | FineGrainedTerm | TarFeatureTerm
    return isinstance(term, squares) and term.scale == 'teacher_std'
