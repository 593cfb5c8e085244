"""Distillation losses between the maps of a student and those of its teacher, and the matching of their levels."""

from mtpd.losses.cosine import CosineOptions
from mtpd.losses.cwd import CwdOptions
from mtpd.losses.distiller import Distiller
from mtpd.losses.fgd import FgdOptions
from mtpd.losses.fine_grained import FineGrainedOptions
from mtpd.losses.maps import valid_cells
from mtpd.losses.masked_mse import MaskedMseOptions
from mtpd.losses.mgd import MgdOptions
from mtpd.losses.options import Decay, LevelOptions
from mtpd.losses.pkd import PkdOptions
from mtpd.losses.tar_feature import TarFeatureOptions

# The table of all losses on maps: each is the options of an entry of `distill` in a stage file.
# fmt: off
MapLoss = (
    MaskedMseOptions
    | MgdOptions
    | PkdOptions
    | CwdOptions
    | CosineOptions
    | FineGrainedOptions
    | TarFeatureOptions
    | FgdOptions
)
# fmt: on

__all__ = [
    'CosineOptions',
    'CwdOptions',
    'Decay',
    'Distiller',
    'FgdOptions',
    'FineGrainedOptions',
    'LevelOptions',
    'MaskedMseOptions',
    'MgdOptions',
    'PkdOptions',
    'TarFeatureOptions',
    'valid_cells',
]
