"""From an entry of a stage's `distill` list to the loss that it asks for."""

from typing import Any

from mtpd.losses.decay import Decay
from mtpd.losses.level_loss import Term
from mtpd.losses.object_terms import TarFeatureTerm
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm
from mtpd_train.loss_settings import DistillSettings

_KINDS: dict[str, type[Term]] = {kind.loss: kind for kind in (MaskedMseTerm, MgdTerm, PkdTerm, CwdTerm, TarFeatureTerm)}


def build_term(settings: DistillSettings) -> Term:
    """The term of an entry: it has the entry's options under the same names."""
    options: dict[str, Any] = {name: getattr(settings, name) for name in type(settings).model_fields}
    kind = _KINDS[options.pop('loss')]
    decay = options.pop('decay')
    return kind(**options, decay=Decay(decay.kind, decay.at))
