"""The machine and the libraries that a program runs on."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from mtpd.errors import InputError


def choose_device(name: str, *, number: int | None = None) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Args:
        name: one of these.
        number: of this process among those of its machine, which have one GPU each; None when it is alone.

    Raises:
        InputError: CUDA was requested but is not available, or there are fewer GPUs than processes.
    """
    if name == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda: PyTorch finds no CUDA device; use --device cpu or fix the driver')
    if name == 'cpu' or not torch.cuda.is_available():
        return torch.device('cpu')
    num_devices = torch.cuda.device_count()
    # Some launchers show each process its own GPU alone.
    if number is None or num_devices == 1:
        return torch.device('cuda')
    if number >= num_devices:
        raise InputError(
            f'--device cuda: this is process {number + 1} of this machine (LOCAL_RANK={number}), which has '
            f'{num_devices} CUDA devices; start {num_devices} processes, or use --device cpu'
        )
    return torch.device('cuda', number)


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
