"""From a term to the loss of one level: its module and what its result is multiplied by."""

from functools import partial

from torch import nn

from mtpd.losses.adapted import AdaptedLoss
from mtpd.losses.cwd import cwd
from mtpd.losses.masked_mse import masked_mse
from mtpd.losses.match import LevelPair
from mtpd.losses.mgd import MaskedGenerativeDistillation, published_elements
from mtpd.losses.object_mse import ObjectMse
from mtpd.losses.object_terms import ObjectTerm, TarFeatureTerm
from mtpd.losses.pkd import pkd
from mtpd.losses.tar_feature import gaussian_weights
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm
from mtpd.pyramid import Level

Term = MaskedMseTerm | MgdTerm | PkdTerm | CwdTerm | ObjectTerm


def build_loss(term: Term, pair: LevelPair) -> nn.Module:
    """The module of a term on one level; its first weights come from torch's global generator."""
    channels = pair.student.channels, pair.teacher.channels
    if isinstance(term, MgdTerm):
        return MaskedGenerativeDistillation(*channels, mask_ratio=term.mask_ratio)
    if isinstance(term, PkdTerm):
        return AdaptedLoss(*channels, loss=pkd, adapter=term.adapter)
    if isinstance(term, CwdTerm):
        return AdaptedLoss(*channels, loss=partial(cwd, temperature=term.temperature), adapter=term.adapter)
    if isinstance(term, TarFeatureTerm):
        weigh = partial(gaussian_weights, stride=pair.teacher.stride, spread=term.spread)
        return ObjectMse(*channels, weigh=weigh, adapter=term.adapter)
    return AdaptedLoss(*channels, loss=masked_mse, adapter=term.adapter)


def constant_factor(term: Term, teacher: Level) -> float:
    """What the module's result is multiplied by to become the loss."""
    if isinstance(term, MgdTerm) and term.normalize == 'published':
        return term.weight * published_elements(teacher)
    return term.weight


def is_over_variance(term: Term) -> bool:
    """Whether the loss is divided by the teacher's variance."""
    # Correlations, softmaxes and attentions are no squares of features: only these have their scale.
    return isinstance(term, MaskedMseTerm | MgdTerm | TarFeatureTerm) and term.scale == 'teacher_std'
