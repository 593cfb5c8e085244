"""Building mmdet detectors from configs, without any download."""

import contextlib
import copy
import importlib
import logging
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
import torch.hub
from torch import nn

from mtpd.detectors.of_mmdet import zoo
from mtpd.detectors.of_mmdet.model_config import (
    config_items,
    drop_weight_references,
    make_buildable,
    set_num_classes,
    type_name,
)
from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored, prepare
from mtpd.detectors.packages import missing_package
from mtpd.errors import InputError, UnavailableError

logger = logging.getLogger(__name__)

# Of each module the functions that get weights; their first argument names these.
_LOADERS = {
    'torch.hub': ('load', 'load_state_dict_from_url', 'download_url_to_file'),
    'torch.utils.model_zoo': ('load_url',),
    'urllib.request': ('urlopen', 'urlretrieve'),
    'socket': ('getaddrinfo',),
}


def load_config(reference: str) -> Any:
    """The mmengine Config of a zoo model, an alias, or a `.py` mmdet config, which is a program and is run."""
    if not reference.endswith('.py') and Path(reference).is_file():
        raise InputError(
            f'config {reference}: its suffix is {Path(reference).suffix!r}, expected a .py mmdet config; '
            "write one with mmengine: Config.fromfile(FILE).dump('config.py')"
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
            # Imports the classes that a pure Python config names, which mmengine does when they are looked at.
            for _ in config_items(config._cfg_dict):
                pass
    except ImportError as error:
        raise UnavailableError(f'config {path} needs {missing_package(error)}') from error
    # A config is a program: it can raise any error, or exit.
    except (Exception, SystemExit) as error:
        reason = f'{type(error).__name__}: {_first_line(error)}'
        if type(error) is RuntimeError and not error.args:  # mmengine raises it without a message.
            reason = (
                'it calls something that it imports, and mmengine reads a config with imports as pure Python, '
                'where imports are only names; write out the values, or begin the config with `_base_ = []`'
            )
        raise InputError(f'config {path} cannot be read: {reason}') from error
    for one in caught:
        if issubclass(one.category, UserWarning):
            logger.warning('note: config %s: %s', path, _first_line(one.message))
    if not isinstance(config.get('model'), dict) or 'type' not in config.model:
        raise InputError(f'config {path} has no `model` with a `type`; give the config of a detector')
    return config


def build_detector(config: Any, *, num_classes: int | None = None, init_weights: bool = True) -> nn.Module:
    """The detector of the `model` of an mmengine Config, which stays as it is, on the CPU, in training mode.

    Nothing is downloaded: references to pretrained weights are dropped. SyncBN becomes BN. `num_classes` None keeps the
    config's. Without `init_weights` PyTorch's defaults stay, which is enough before a checkpoint is loaded.
    """
    prepare()
    from mmdet.models.detectors import DDQDETR
    from mmdet.registry import MODELS

    name = f'config {config.filename}' if getattr(config, 'filename', None) else f'model {type_name(config.model)}'
    model_config = copy.deepcopy(config.model)
    drop_weight_references(model_config)
    make_buildable(model_config, zoo_folder=zoo.configs_folder())
    if num_classes is not None:
        set_num_classes(model_config, num_classes)
    with no_downloads() as refused, known_warnings_ignored():
        try:
            model: Any = MODELS.build(model_config)
            # In its first training step mmdet adds its head's auxiliary branches to DDQ's decoder, under a name of
            # their own, so that all checkpoints of mmdet have them twice.
            if isinstance(model, DDQDETR):
                model.decoder.aux_reg_branches = model.bbox_head.aux_reg_branches
            if init_weights:
                model.init_weights()
        except ImportError as error:
            if not refused:
                raise UnavailableError(f'{name} needs {missing_package(error)}') from error
        # Configs are the user's, and models check their arguments in every possible way.
        except Exception as error:
            if not refused:
                # mmdet's message for optional packages has the command that installs them.
                if 'is not installed' in str(error):
                    raise UnavailableError(f'{name}: {_first_line(error)}') from error
                raise InputError(f'{name} cannot be built: {type(error).__name__}: {_first_line(error)}') from error
    if refused:
        raise InputError(
            f'{name} loads {refused[0]} while it is built, but only the backbone may have its own weights '
            '(init.backbone); remove it from the config, or override its key with `model` in the stage file'
        )
    detector: nn.Module = model
    return detector


@contextlib.contextmanager
def no_downloads() -> Iterator[list[str]]:
    """Refuses requests for weights from elsewhere and from download caches, by an InputError; gives their list.

    The list also finds code that catches the error.
    """
    prepare()
    from mmengine.runner.checkpoint import CheckpointLoader

    refused: list[str] = []

    def refuse(reference: object) -> Any:
        refused.append(str(getattr(reference, 'full_url', reference)))
        raise InputError(f'{refused[-1]}: weights that were not requested')

    def refuse_first(*arguments: Any, **options: Any) -> Any:
        named = [*arguments, *options.values()]
        return refuse(next((one for one in named if isinstance(one, str | urllib.request.Request)), 'unnamed weights'))

    def connect(_: socket.socket, address: Any) -> None:
        # A path is a socket of this machine.
        refuse(address[0] if isinstance(address, tuple) else address)

    with contextlib.ExitStack() as stack:
        for module, names in _LOADERS.items():
            for name in names:
                stack.enter_context(patch.object(importlib.import_module(module), name, refuse_first))
        stack.enter_context(patch.object(CheckpointLoader, 'load_checkpoint', staticmethod(refuse_first)))
        stack.enter_context(patch.object(socket.socket, 'connect', connect))
        for owner, name in ((torch, 'load'), (safetensors.torch, 'load_file')):
            stack.enter_context(patch.object(owner, name, _unless_downloaded(getattr(owner, name), refuse)))
        yield refused


def _unless_downloaded(load: Any, refuse: Any) -> Any:
    caches = (Path(torch.hub.get_dir()), Path.home() / '.cache')

    def loaded(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, str | Path) and any(Path(file).absolute().is_relative_to(one) for one in caches):
            return refuse(file)
        return load(file, *arguments, **options)

    return loaded


def _first_line(error: BaseException | str) -> str:
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else 'no message'
