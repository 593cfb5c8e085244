"""The machine, the libraries and the launcher that a program runs on."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from mtpd.errors import InputError

if TYPE_CHECKING:
    import torch


def choose_device(name: str, *, number: int | None = None) -> 'torch.device':
    """The device for `auto`, `cpu` or `cuda`.

    `number` is that of this process among those of its machine, which have one GPU each; None when it is alone.
    """
    import torch  # Not at the top: it would slow down --help.

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


def describe_device(device: 'torch.device') -> str:
    """The GPU's name, or the processor's architecture."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()


def versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # OpenCV, for one, comes under several names
            found[name] = 'not installed under this name'
    return found | {'python': platform.python_version()}


def rank_and_size(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Rank of this process and world size, as torchrun sets them; None for a process on its own.

    Raises ValueError where they are not consistent numbers.
    """
    rank, world_size = environment.get('RANK'), environment.get('WORLD_SIZE')
    if rank is None or world_size is None:
        return None
    if not (rank.isdigit() and world_size.isdigit() and int(rank) < int(world_size)):
        raise ValueError(
            f'RANK={rank} and WORLD_SIZE={world_size} in the environment: expected a rank below the world size; '
            'unset them'
        )
    return int(rank), int(world_size)


def launcher_number(environment: Mapping[str, str], name: str) -> int | None:
    """LOCAL_RANK or LOCAL_WORLD_SIZE, where torchrun set them; ValueError where it is not a number."""
    number = environment.get(name)
    if number is None:
        return None
    if not number.isdigit():
        raise ValueError(f'{name}={number} in the environment: expected a number; unset it')
    return int(number)
