"""What a stage file may say about what is saved of a run."""

from pydantic import NonNegativeInt, PositiveFloat

from mtpd_train.settings.section import Section


class SaveSettings(Section):
    """What is saved beside the last student. Everything here may change when a run goes on."""

    every_minutes: PositiveFloat | None = 15.0
    """Minutes between two savings of the training state, which every epoch ends with too; null: only there."""
    keep: NonNegativeInt = 2
    """Epochs whose students are kept, the last ones, as `epoch_N.pth`; the best by box AP is `best.pth`."""
