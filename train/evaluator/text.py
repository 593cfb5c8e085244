"""What an evaluation found, as tables for a terminal."""

from collections.abc import Mapping

from mtpd.evaluation import METRICS, Evaluation
from mtpd.system.text import table


def metrics_table(found: Mapping[str, Evaluation]) -> list[str]:
    """COCO's twelve numbers of boxes and masks, in percent; `-` where there is nothing to find."""
    rows = [[kind, *(percent(one.metrics[name]) for name in METRICS)] for kind, one in found.items()]
    return table(['', *METRICS], rows)


def class_table(found: Mapping[str, Evaluation]) -> list[str]:
    """AP of each class, the best first."""
    class_ap = next(iter(found.values())).class_ap
    names = sorted(class_ap, key=lambda name: -class_ap[name])
    rows = [[name, *(percent(one.class_ap[name]) for one in found.values())] for name in names]
    return table(['class', *(f'{kind} AP' for kind in found)], rows)


def percent(value: float) -> str:
    """A share as COCO's tables have it."""
    return '-' if value < 0 else f'{100 * value:.1f}'
