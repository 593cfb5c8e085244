"""Makes mmdet usable: its compiled operators, its registries, its noise."""

import functools
import importlib
import logging
import warnings

logger = logging.getLogger(__name__)


@functools.cache
def prepare() -> None:
    """Imports mmdet with working operators and registers its classes. Call it before any import of mmdet or mmcv.

    A compiled mmcv is used when it is installed; else `mtpd.detectors.mmcv_ext` takes the place of its operators.
    """
    with warnings.catch_warnings():
        # Raised while these packages are imported: old typing, pkg_resources, deprecated aliases. None is ours to mend.
        warnings.simplefilter('ignore')
        _provide_operators()
        from mmdet.utils import register_all_modules
        from mmengine.logging import MMLogger

        register_all_modules(init_default_scope=True)
    # mmengine logs a line for every tensor of a model that is initialised.
    MMLogger.get_current_instance().setLevel(logging.WARNING)


def _provide_operators() -> None:
    try:
        importlib.import_module('mmcv._ext')
    except ImportError as error:
        if not isinstance(error, ModuleNotFoundError):
            logger.warning('the compiled mmcv cannot be loaded (%s); using the operators of torchvision', error)
        from mtpd.detectors import mmcv_ext

        mmcv_ext.install()
