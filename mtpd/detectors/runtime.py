"""Makes mmdet usable: its compiled operators, its registries, its noise."""

import functools
import importlib.util
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path

from mtpd.detectors.compatibility import repair_mmdet

logger = logging.getLogger(__name__)

# Raised by mmdet, mmcv and mmengine at work: older spellings, and hints for their authors.
KNOWN_WARNINGS = (
    r'Unnecessary conv bias before',
    r'Sparse invariant checks are implicitly disabled',
    r'`torch\.cuda\.amp\.',
    r'torch\.meshgrid: in an upcoming release',
    r'This overload of addmm is deprecated',
    r'To copy construct from a tensor',
    r'Default ``avg_non_ignore`` is False',
    r'DeprecationWarning: ',
    r"The 'warn' method is deprecated",
    r'The arguments `dropout` in MultiheadAttention',
    r'"(add_residual|dropout)" is deprecated in `FFN',
)


@functools.cache
def prepare() -> None:
    """Imports mmdet with working operators and registers its classes. Call it before any import of mmdet or mmcv.

    A compiled mmcv is used when it is installed; else `mtpd.detectors.mmcv_ext` takes the place of its operators.
    """
    with warnings.catch_warnings():
        # Errors raised by importing them are not mtpd's to fix.
        warnings.simplefilter('ignore')
        _provide_operators()
        from mmdet.utils import register_all_modules
        from mmengine.logging import MMLogger

        register_all_modules(init_default_scope=True)
        _find_base_configs()
        _know_standard_modules()
        repair_mmdet()
    _ignore_known_warnings()
    # mmengine logs a line for every tensor that is initialised, and warns of backbones without pretrained weights.
    MMLogger.get_current_instance().setLevel(logging.ERROR)


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """For calls that must work where warnings are errors, or where somebody has reset the filters of `prepare`."""
    with warnings.catch_warnings():
        _ignore_known_warnings()
        yield


def _ignore_known_warnings() -> None:
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings('ignore', message=message)


def _find_base_configs() -> None:
    """Lets configs have a `_base_` such as 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'.

    mmengine 0.10 finds packages by `pkg_resources`, which setuptools no longer has.
    """
    from mmengine.config import config

    def spec(package: str) -> ModuleSpec | None:
        return importlib.util.find_spec(package)

    def path(package: str) -> str:
        found = spec(package)
        assert found is not None, 'it was asked for before'
        assert found.origin is not None, 'mmdet is no namespace package'
        return str(Path(found.origin).parent)

    config.is_installed = lambda package: spec(package) is not None
    config.get_installed_path = path


def _know_standard_modules() -> None:
    """Lets configs import `os` and use it.

    mmengine 0.10 knows the standard library by the paths of its files, which modules frozen into Python 3.11 lack; it
    then takes the config for one in pure Python, reads no `_base_` and calls nothing.
    """
    from mmengine.config import config, utils

    is_standard = utils._is_builtin_module
    for module in (config, utils):
        module._is_builtin_module = lambda name: name.partition('.')[0] in sys.stdlib_module_names or is_standard(name)


def _provide_operators() -> None:
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            logger.warning('the compiled mmcv cannot be loaded (%s); using the operators of torchvision', error)
        from mtpd.detectors import mmcv_ext

        mmcv_ext.install()
