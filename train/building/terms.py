"""From an entry of a stage's `distill` list to the loss that it asks for."""

from typing import Any

from mtpd.losses.decay import Decay
from mtpd.losses.level_loss import Term
from mtpd.losses.objects.terms import FgdTerm, FineGrainedTerm, TarFeatureTerm
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm
from mtpd_train.settings.loss_settings import LevelLossSettings

_KINDS = (MaskedMseTerm, MgdTerm, PkdTerm, CwdTerm, FineGrainedTerm, TarFeatureTerm, FgdTerm)


def build_term(settings: LevelLossSettings) -> Term:
    """The term of an entry: it has the entry's options under the same names."""
    options: dict[str, Any] = {name: getattr(settings, name) for name in type(settings).model_fields}
    loss = options.pop('loss')
    (kind,) = [kind for kind in _KINDS if kind.loss == loss]
    decay = options.pop('decay')
    return kind(**options, decay=Decay(decay.kind, decay.at))
