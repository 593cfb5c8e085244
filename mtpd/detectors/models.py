"""Building mmdet detectors from configs, without any download."""

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from mtpd.detectors import zoo
from mtpd.detectors.compatibility import complete
from mtpd.detectors.missing_package import missing_package
from mtpd.detectors.model_config import make_buildable, set_num_classes
from mtpd.detectors.no_downloads import no_downloads
from mtpd.detectors.runtime import known_warnings_ignored, prepare
from mtpd.detectors.type_names import type_name
from mtpd.detectors.weight_references import drop_weight_references
from mtpd.errors import InputError, UnavailableError

logger = logging.getLogger(__name__)


def load_config(reference: str) -> Any:
    """The mmengine Config of a zoo model, an alias, or a `.py` mmdet config.

    Raises:
        InputError: there is no such model or file, or the file is not a model config.
        UnavailableError: the config imports a package that is not installed.
    """
    if not reference.endswith('.py') and Path(reference).is_file():
        raise InputError(
            f'config {reference}: its suffix is {Path(reference).suffix!r}, expected a .py mmdet config; '
            'write one with '
            "mmengine: Config.fromfile(FILE).dump('config.py')"
        )
    path = Path(reference) if reference.endswith('.py') else zoo.resolve(reference).config
    if not path.is_file():
        raise InputError(f'config {path}: there is no such file; give a path to an mmdet config or a zoo name')
    prepare()
    from mmengine.config import Config

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('default', UserWarning)
            config = Config.fromfile(str(path))
            _import_types(config._cfg_dict)
    except ImportError as error:
        raise UnavailableError(f'config {path} needs {missing_package(error)}') from error
    # A config is a program: it can fail in any way, or leave.
    except (Exception, SystemExit) as error:
        raise InputError(f'config {path} cannot be read: {_failure(error)}') from error
    for one in caught:
        if issubclass(one.category, UserWarning):
            logger.warning('note: config %s: %s', path, _line(one.message))
    if not isinstance(config.get('model'), dict) or 'type' not in config.model:
        raise InputError(f'config {path} has no `model` with a `type`; give the config of a detector')
    return config


def build_detector(config: Any, *, num_classes: int | None = None, init_weights: bool = True) -> nn.Module:
    """The detector of `config.model`, on the CPU, in training mode.

    Nothing is downloaded: references to pretrained weights are dropped (`backbone_reference` tells the backbone's).
    SyncBN becomes BN. The caller's config stays as it is.

    Args:
        config: an mmengine Config.
        num_classes: number of classes of every classifying head; None keeps the config's.
        init_weights: initialise the weights as the model's authors do; False leaves PyTorch's defaults, which is
            enough when a checkpoint is loaded next.

    Raises:
        InputError: the config does not describe a detector that mmdet can build.
        UnavailableError: the model needs a package that is not installed.
    """
    prepare()
    from mmdet.registry import MODELS

    model_config = copy.deepcopy(config.model)
    drop_weight_references(model_config)
    make_buildable(model_config, zoo_folder=zoo.configs_folder())
    if num_classes is not None:
        set_num_classes(model_config, num_classes)
    with no_downloads() as refused, known_warnings_ignored():
        try:
            model: Any = MODELS.build(model_config)
            complete(model)
            if init_weights:
                model.init_weights()
        # Configs are the user's, and models check their arguments in every possible way.
        except Exception as error:
            if not refused:
                raise _unbuildable(error, config) from error
    if refused:
        raise InputError(
            f'{_name(config)} loads {refused[0]} while it is built, but only the backbone may have its own weights '
            '(init.backbone); remove it from the config, or override its key with `model` in the stage file'
        )
    detector: nn.Module = model
    return detector


def _unbuildable(error: Exception, config: Any) -> InputError | UnavailableError:
    if isinstance(error, ImportError):
        return UnavailableError(f'{_name(config)} needs {missing_package(error)}')
    if 'is not installed' in str(error):  # how mmdet tells of optional packages, with the command that helps
        return UnavailableError(f'{_name(config)}: {_line(error)}')
    return InputError(f'{_name(config)} cannot be built: {type(error).__name__}: {_line(error)}')


def _failure(error: BaseException) -> str:
    # All that mmengine says of it.
    if type(error) is RuntimeError and not error.args:
        return (
            'it calls something that it imports, and mmengine reads a config with imports as pure Python, '
            'where imports are only names; write out the values, or begin the config with `_base_ = []`'
        )
    return f'{type(error).__name__}: {_line(error)}'


def _import_types(values: Any) -> None:
    """Imports the classes that a pure Python config names, which mmengine does not before they are looked at."""
    if isinstance(values, dict):
        for value in values.values():
            _import_types(value)
    elif isinstance(values, list | tuple):
        for value in values:
            _import_types(value)


def _name(config: Any) -> str:
    return f'config {config.filename}' if getattr(config, 'filename', None) else f'model {type_name(config.model)}'


def _line(error: BaseException | str) -> str:
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else 'no message'
