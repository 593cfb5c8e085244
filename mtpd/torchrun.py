"""Environment variables that torchrun sets for its processes."""

from collections.abc import Mapping


def rank_and_size(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Number of this process, from 0, and how many there are on all machines; None for a process on its own.

    Raises:
        ValueError: RANK and WORLD_SIZE are not consistent numbers.
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


def local_rank(environment: Mapping[str, str]) -> int | None:
    """Number of this process on its machine, from 0, where torchrun started it.

    Raises:
        ValueError: LOCAL_RANK is not a number.
    """
    return _number(environment, 'LOCAL_RANK')


def local_size(environment: Mapping[str, str]) -> int | None:
    """How many processes there are on this machine, where torchrun started them.

    Raises:
        ValueError: LOCAL_WORLD_SIZE is not a number.
    """
    return _number(environment, 'LOCAL_WORLD_SIZE')


def _number(environment: Mapping[str, str], name: str) -> int | None:
    number = environment.get(name)
    if number is None:
        return None
    if not number.isdigit():
        raise ValueError(f'{name}={number} in the environment: expected a number; unset it')
    return int(number)
