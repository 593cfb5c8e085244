"""The processes that torchrun starts, and their communication.

All processes must call these functions, in the same order. They only exchange values of the run itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import nn

from mtpd.errors import InputError, UnavailableError
from mtpd.system.environment import launcher_number, rank_and_size

Value = TypeVar('Value')

# How long the others wait for one process, mainly for the evaluation of all detections.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """The rank of this process among those that train together; a single process does not communicate."""

    rank: int = 0  # process 0 writes, prints and evaluates
    size: int = 1
    local_rank: int | None = None  # number of the process on its machine, and of its GPU
    local_size: int = 1  # processes on its machine

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set in any process."""
        if self.size == 1:
            return flags
        together = torch.tensor(flags, dtype=torch.uint8)
        torch.distributed.all_reduce(together, op=torch.distributed.ReduceOp.MAX)
        return tuple(map(bool, together.tolist()))

    def from_main(self, value: Value) -> Value:
        """The value that process 0 passed."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes."""
        if self.size == 1:
            return [value]
        values: list[Value | None] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # all are there now

    def gathered_by_main(self, value: Value) -> list[Value]:
        """The values of all processes for process 0; nothing for the others."""
        if self.size == 1:
            return [value]
        values: list[Value | None] | None = [None] * self.size if self.is_main else None
        torch.distributed.gather_object(value, values)
        return values or []  # type: ignore[return-value]

    def share_buffers(self, *modules: nn.Module) -> None:
        """Gives all processes the buffers of process 0: batch statistics are of its images."""
        if self.size > 1:
            for buffer in (one for module in modules for one in module.buffers()):
                torch.distributed.broadcast(buffer, 0)


ALONE = World()


def world_of(environment: Mapping[str, str]) -> World:
    """The world that torchrun describes in the environment, `ALONE` without it; InputError where it is inconsistent."""
    try:
        found = rank_and_size(environment)
        number, num_local = (launcher_number(environment, f'LOCAL_{name}') for name in ('RANK', 'WORLD_SIZE'))
    except ValueError as error:
        raise InputError(str(error)) from None
    if found is None or found[1] == 1:
        return ALONE
    if 'MASTER_ADDR' not in environment:
        raise InputError(
            f'WORLD_SIZE={found[1]} in the environment, but no MASTER_ADDR: start with torchrun, or unset WORLD_SIZE'
        )
    return World(*found, local_rank=number, local_size=num_local or 1)


@contextmanager
def joined(world: World, device: torch.device) -> Iterator[None]:
    """Connects the processes; raises an UnavailableError when another process has ended."""
    if world.size == 1:
        yield
        return
    backend = 'gloo'
    if device.type == 'cuda':
        # Values and flags are sent by the CPU, and do not wait for the GPU.
        backend = 'cpu:gloo,cuda:nccl'
        torch.cuda.set_device(device)
    try:
        torch.distributed.init_process_group(backend, timeout=TIMEOUT)
        yield
    except RuntimeError as error:
        if isinstance(error, torch.distributed.DistError) or 'gloo' in str(error):
            raise UnavailableError(
                f'process {world.rank} of {world.size} lost contact with another process; see the error of that process'
            ) from error
        raise
    # Not in `finally`: this would wait for a process that has ended.
    torch.distributed.destroy_process_group()
