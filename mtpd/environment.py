"""The machine and the libraries that a program runs on."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from mtpd.errors import InputError


def choose_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for.

    Raises:
        InputError: CUDA was asked for and is not there.
    """
    if name == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda: PyTorch sees no CUDA device here; use --device cpu or mend the driver')
    return torch.device('cuda' if name == 'cuda' or (name == 'auto' and torch.cuda.is_available()) else 'cpu')


def describe_device(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Version of each package, and of Python."""
    return {name: _version(name) for name in packages} | {'python': platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # OpenCV, for one, comes under several names.
        return 'not installed under this name'
