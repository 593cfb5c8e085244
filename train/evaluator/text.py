"""What an evaluation found, as tables for a terminal."""

from collections.abc import Mapping

from mtpd.evaluation import METRICS, Evaluation


def metrics_table(found: Mapping[str, Evaluation]) -> list[str]:
    """COCO's twelve numbers of boxes and masks, in percent; `-` where there is nothing to find."""
    lines = [' ' * 4 + ''.join(name.rjust(7) for name in METRICS)]
    for kind, one in found.items():
        lines.append(f'{kind:<4}' + ''.join(percent(one.metrics[name]).rjust(7) for name in METRICS))
    return lines


def class_table(found: Mapping[str, Evaluation]) -> list[str]:
    """AP of each class, the best first."""
    first = next(iter(found.values()))
    width = max(len('class'), *map(len, first.class_ap))
    lines = ['class'.ljust(width) + ''.join(f'{kind} AP'.rjust(9) for kind in found)]
    for name in sorted(first.class_ap, key=lambda name: -first.class_ap[name]):
        lines.append(name.ljust(width) + ''.join(percent(one.class_ap[name]).rjust(9) for one in found.values()))
    return lines


def percent(value: float) -> str:
    """A share as COCO's tables have it."""
    return '-' if value < 0 else f'{100 * value:.1f}'
