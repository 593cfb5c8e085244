"""The share of the work of this process: from --part, or from torchrun's environment variables."""

from collections.abc import Mapping

from mtpd.system.environment import rank_and_size


def part_of_environment(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """(part, parts), counted from 1, of a process that torchrun started; None for a process on its own.

    Raises:
        ValueError: RANK and WORLD_SIZE are not consistent numbers.
    """
    try:
        found = rank_and_size(environment)
    except ValueError as error:
        raise ValueError(f'{error}, or give --part') from None
    return None if found is None else (found[0] + 1, found[1])
