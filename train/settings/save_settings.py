"""Settings of a stage file for what a run saves."""

from pydantic import NonNegativeInt, PositiveFloat

from mtpd_train.settings.section import Section


class SaveSettings(Section):
    """Additional checkpoints. These settings may change when a run is resumed."""

    every_minutes: PositiveFloat | None = 15.0
    """Minutes between saves of the training state, in addition to the end of each epoch; null: epoch ends only."""
    keep: NonNegativeInt = 2
    """Keep the students of the last N epochs as `epoch_N.pth`; the best by box AP is `best.pth`."""
