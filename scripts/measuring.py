"""What the scripts share: parser, interleaved rounds, medians of ratios."""

import argparse
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from mtpd_extract.cli import main as mtpd_extract
from mtpd_extract.options import ExtractOptions

T = TypeVar('T')


def described_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring as it is."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def extract_options(arguments: Sequence[str]) -> ExtractOptions:
    """Those of a command line of mtpd-extract."""
    given = mtpd_extract.make_context('mtpd-extract', list(arguments)).params
    return ExtractOptions(**{name: value for name, value in given.items() if name not in ('verbose', 'quiet')})


def interleaved(ways: Mapping[str, Callable[[], T]], num_rounds: int) -> list[dict[str, T]]:
    """The results of rounds of all ways in turn, so that what slows the machine slows all; one more round warms up."""
    return [{name: way() for name, way in ways.items()} for _ in range(1 + num_rounds)][1:]


def median_ratio(ones: Iterable[float], others: Iterable[float]) -> float:
    return statistics.median(one / other for one, other in zip(ones, others, strict=True))
