"""Detectors of mmdet: building, weights, zoo, features. The only package that imports mmdet and its relatives."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtpd.detectors.runtime import prepare
    from mtpd.detectors.teachers import InputOptions, Teacher, load_teacher

__all__ = ['InputOptions', 'Teacher', 'load_teacher', 'prepare']


def __getattr__(name: str) -> Any:
    # Imported on first use: programs that need another module of this package would wait for torch.
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{"runtime" if name == "prepare" else "teachers"}'), name)
