"""Detectors of several libraries behind one interface: building, weights, features. Each has a folder `of_NAME`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtpd.detectors.detector import Definition, Detections, Detector
    from mtpd.detectors.input_options import InputOptions
    from mtpd.detectors.of_mmdet.runtime import prepare
    from mtpd.detectors.preprocessing import Normalisation, Preprocessing
    from mtpd.detectors.references import define_detector, load_teacher
    from mtpd.detectors.samples import Sample, Target
    from mtpd.detectors.teachers import Teacher

# Name -> the module that has it.
_PLACES = {
    'Definition': 'detector', 'Detections': 'detector', 'Detector': 'detector', 'InputOptions': 'input_options',
    'Normalisation': 'preprocessing', 'Preprocessing': 'preprocessing', 'Sample': 'samples', 'Target': 'samples',
    'Teacher': 'teachers', 'define_detector': 'references', 'load_teacher': 'references',
    'prepare': 'of_mmdet.runtime',
}  # fmt: skip
__all__ = [
    'Definition', 'Detections', 'Detector', 'InputOptions', 'Normalisation', 'Preprocessing', 'Sample', 'Target',
    'Teacher', 'define_detector', 'load_teacher', 'prepare',
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Imported on first use: programs that need another module of this package would wait for torch.
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_PLACES[name]}'), name)
