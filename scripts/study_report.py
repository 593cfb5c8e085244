"""Tables, sentences and the plot of `study_progressive.py`."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BITS = (0.5, 1, 2, 4, 8, 16)
METHODS = ('direct weak', 'direct strong', 'progressive', 'wrong order')


@dataclass(frozen=True)
class Result:
    """Box AP (0..100) of one trained student."""

    method: str
    loss: str | None
    codec: str
    seed: int
    ap: float


def report(results: Sequence[Result], *, bits: Mapping[str, float], usual_codec: str) -> None:
    """Prints AP by method and loss, AP by codec, and what the differences say."""
    alone = select(results, 'alone', None, usual_codec)
    losses = sorted({one.loss for one in results if one.loss is not None and one.method != 'direct strong'})
    print(f'{"loss":<12}{"method":<16}{"box AP":>16}  seeds')
    print(_row('-', 'alone', alone))
    for loss in losses:
        for method in METHODS:
            print(_row(loss, method, select(results, method, loss, usual_codec)))
    if bits:
        print(f'\n{"codec":<12}{"bits":<16}{"box AP":>16}  direct from the strong teacher, masked_mse')
        for codec, size in bits.items():
            print(_row(codec, f'{size:.2f}', select(results, 'direct strong', 'masked_mse', codec)))
    print()
    for loss in losses:
        direct = select(results, 'direct strong', loss, usual_codec)
        for name, first, second in (
            ('direct from the strong teacher against alone', direct, alone),
            ('progressive against direct', select(results, 'progressive', loss, usual_codec), direct),
            (
                'progressive against the wrong order',
                select(results, 'progressive', loss, usual_codec),
                select(results, 'wrong order', loss, usual_codec),
            ),
        ):
            print(f'{loss}: {name}: {verdict(first, second)}')
    if bits:
        finest, coarsest = max(bits, key=bits.__getitem__), min(bits, key=bits.__getitem__)
        first, second = (select(results, 'direct strong', 'masked_mse', codec) for codec in (coarsest, finest))
        print(
            f'codecs: {coarsest} ({bits[coarsest]:.2f} bits) against {finest} ({bits[finest]:.2f} bits): '
            f'{verdict(first, second)}'
        )


def select(results: Sequence[Result], method: str, loss: str | None, codec: str) -> dict[int, float]:
    """Seed -> AP of one setting."""
    return {one.seed: one.ap for one in results if (one.method, one.loss, one.codec) == (method, loss, codec)}


def verdict(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    """The mean difference between two settings over their common seeds, and whether it stands out of the spread.

    Differences are taken seed by seed, though a seed means no more than the same start and the same order of images. A
    mean that is less than two of its standard errors away from 0 is called no difference.
    """
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if len(differences) < 2:
        return f'{differences[0]:+.1f} AP in one seed, which says little' if differences else 'not measured'
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    word = 'no difference that these seeds could tell' if abs(mean) <= 2 * error else 'better' if mean > 0 else 'worse'
    return f'{mean:+.1f} AP (standard error {error:.1f}, {len(differences)} seeds): {word}'


def save_plot(
    results: Sequence[Result],
    *,
    bits: Mapping[str, float],
    usual_codec: str,
    teachers: Mapping[str, float],
    out: Path,
) -> None:
    """Draws every run as a dot and every mean as a line: by method on the left, by bits per element on the right."""
    from matplotlib.figure import Figure

    losses = sorted({one.loss for one in results if one.loss is not None and one.method != 'direct strong'})
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    labels = []
    settings: list[tuple[str, str | None]] = [('alone', None)]
    settings += [(method, loss) for loss in losses for method in METHODS]
    for position, (method, loss) in enumerate(settings):
        values = list(select(results, method, loss, usual_codec).values())
        colour = f'C{losses.index(loss) + 1}' if loss else 'C0'
        left.plot([position] * len(values), values, 'o', color=colour, alpha=0.6)
        left.hlines(statistics.mean(values), position - 0.3, position + 0.3, color=colour, linewidth=2)
        labels.append(f'{method}\n{loss}' if loss else method)
    left.set_xticks(range(len(labels)), labels, rotation=45, ha='right', fontsize=8)
    for name, ap in teachers.items():
        left.axhline(ap, color='grey', linewidth=0.8, linestyle='--')
        left.annotate(f'{name} teacher', (len(labels) - 0.4, ap), fontsize=7, color='grey', ha='right', va='bottom')
    left.set_ylabel('box AP of the student')
    left.set_title('methods, equal epochs', fontsize=10)
    for codec, size in bits.items():
        values = list(select(results, 'direct strong', 'masked_mse', codec).values())
        right.plot([size] * len(values), values, 'o', color='C1', alpha=0.6)
        right.plot([size], [statistics.mean(values)], '_', color='C1', markersize=16, markeredgewidth=2)
        right.annotate(
            codec,
            (size, min(values)),
            fontsize=7,
            ha='center',
            va='top',
            xytext=(0, -6),
            textcoords='offset points',
        )
    right.axhline(
        statistics.mean(select(results, 'alone', None, usual_codec).values()), color='C0', linewidth=1, linestyle=':'
    )
    right.set_xscale('log', base=2)
    right.set_xticks(BITS, [f'{size:g}' for size in BITS])
    right.set_xlim(min(bits.values(), default=1) / 1.6, max(bits.values(), default=1) * 1.6)
    right.set_xlabel('bits per element on disk')
    right.set_title('codecs (direct strong, masked_mse; dotted: alone)', fontsize=10)
    figure.savefig(out, dpi=120)


def _row(first: str, second: str, values: Mapping[int, float]) -> str:
    aps = list(values.values())
    if not aps:
        return f'{first:<12}{second:<16}{"-":>16}'
    spread = f' +- {statistics.stdev(aps):.1f}' if len(aps) > 1 else ''
    return f'{first:<12}{second:<16}{statistics.mean(aps):>9.1f}{spread:<7}  {", ".join(f"{ap:.1f}" for ap in aps)}'
