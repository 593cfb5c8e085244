"""A context in which no code of a model can fetch or load weights."""

import contextlib
import importlib
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.hub

from mtpd.detectors.runtime import prepare
from mtpd.errors import InputError

# Of each module the functions that get weights; their first argument names these.
_LOADERS = {
    'torch.hub': ('load', 'load_state_dict_from_url', 'download_url_to_file'),
    'torch.utils.model_zoo': ('load_url',),
    'urllib.request': ('urlopen', 'urlretrieve'),
    'socket': ('getaddrinfo',),
}


class WeightsRefused(InputError):
    """A model's code asked for weights."""


@contextlib.contextmanager
def no_downloads() -> Iterator[list[str]]:
    """Refuses every request for weights from elsewhere; gives the list of those that were refused, in order.

    Code that catches the error is found by the list. Files beside the model's own code can be read: of `torch.load`
    only what was downloaded before, by anybody, is refused.

    Raises:
        WeightsRefused: inside the block, to who asked.
    """
    prepare()
    from mmengine.runner.checkpoint import CheckpointLoader

    refused: list[str] = []

    def refuse(reference: object) -> Any:
        refused.append(str(getattr(reference, 'full_url', reference)))
        raise WeightsRefused(f'{refused[-1]}: weights that were not requested')

    def refuse_first(*arguments: Any, **options: Any) -> Any:
        named = [*arguments, *options.values()]
        return refuse(next((one for one in named if isinstance(one, str | urllib.request.Request)), 'unnamed weights'))

    def connect(_: socket.socket, address: Any) -> None:
        # A path is a socket of this machine.
        refuse(address[0] if isinstance(address, tuple) else address)

    with contextlib.ExitStack() as stack:
        for module, names in _LOADERS.items():
            for name in names:
                stack.enter_context(_replaced(importlib.import_module(module), name, refuse_first))
        stack.enter_context(_replaced(CheckpointLoader, 'load_checkpoint', staticmethod(refuse_first)))
        stack.enter_context(_replaced(socket.socket, 'connect', connect))
        for owner, name in ((torch, 'load'), (safetensors.torch, 'load_file')):
            stack.enter_context(_replaced(owner, name, _unless_downloaded(getattr(owner, name), refuse)))
        yield refused


def _unless_downloaded(load: Any, refuse: Any) -> Any:
    caches = (Path(torch.hub.get_dir()), Path.home() / '.cache')

    def loaded(file: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(file, str | Path) and any(Path(file).absolute().is_relative_to(one) for one in caches):
            return refuse(file)
        return load(file, *arguments, **options)

    return loaded


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    is_own = name in vars(owner)
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)  # what a class has inherited
