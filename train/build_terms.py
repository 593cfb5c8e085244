"""From the entries of a stage's `distill` list to the values that losses are built from."""

from mtpd.losses.decay import Decay
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm, Term
from mtpd_train.loss_settings import CwdSettings, DistillSettings, MgdSettings, PkdSettings


def build_term(settings: DistillSettings) -> Term:
    """The loss that an entry asks for."""
    decay = Decay(settings.decay.kind, settings.decay.at)
    if isinstance(settings, MgdSettings):
        return MgdTerm(
            levels=settings.levels,
            weight=settings.weight,
            mask_ratio=settings.mask_ratio,
            normalize=settings.normalize,
            scale=settings.scale,
            decay=decay,
        )
    if isinstance(settings, PkdSettings):
        return PkdTerm(levels=settings.levels, weight=settings.weight, adapter=settings.adapter, decay=decay)
    if isinstance(settings, CwdSettings):
        return CwdTerm(
            levels=settings.levels,
            weight=settings.weight,
            temperature=settings.temperature,
            adapter=settings.adapter,
            decay=decay,
        )
    return MaskedMseTerm(
        levels=settings.levels, weight=settings.weight, adapter=settings.adapter, scale=settings.scale, decay=decay
    )
