"""Tables of the study: means over seeds, and differences paired by seed."""

import math
import statistics
from dataclasses import dataclass

from study.plan import Chain, Question, chain_name
from study.running import Results


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: of the seeds.
        error: its standard error; NaN of a single seed.
        num_seeds: how many.
    """

    mean: float
    error: float
    num_seeds: int

    @property
    def counts(self) -> bool:
        """Whether it is more than two standard errors away from 0, from three seeds on."""
        return self.num_seeds >= 3 and abs(self.mean) > 2 * self.error

    @classmethod
    def of(cls, values: list[float]) -> 'Estimate | None':
        """The estimate from one value a seed; None without any."""
        if not values:
            return None
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(statistics.mean(values), error, len(values))


def by_seed(results: Results, chain: Chain) -> dict[int, float]:
    """Seed -> box AP of a chain."""
    return {seed: ap for (name, seed), ap in results.items() if name == chain_name(chain)}


def box_ap(results: Results, chain: Chain) -> Estimate | None:
    """Box AP of a chain; None where it has not been trained."""
    return Estimate.of(list(by_seed(results, chain).values()))


def difference(results: Results, first: Chain, second: Chain) -> Estimate | None:
    """Box AP of the first less that of the second, over the seeds that both have."""
    here, there = by_seed(results, first), by_seed(results, second)
    return Estimate.of([here[seed] - there[seed] for seed in sorted(here.keys() & there.keys())])


def table(question: Question, results: Results) -> str:
    """The question's table as Markdown; rows that have not been trained say so."""
    labels = list(question.rows)
    lines = [
        f'**{question.title}**',
        '',
        f'| | box AP | against {labels[0]} | seeds |',
        '|---|---|---|---|',
    ]
    for label, chain in question.rows.items():
        ap = box_ap(results, chain)
        if ap is None:
            lines.append(f'| {label} | not trained yet | | 0 |')
            continue
        against = difference(results, chain, question.rows[labels[0]]) if label != labels[0] else None
        lines.append(f'| {label} | {_text(ap)} | {_verdict(against)} | {ap.num_seeds} |')
    return '\n'.join(lines)


def _text(one: Estimate, sign: str = '') -> str:
    return f'{one.mean:{sign}.1f}' + ('' if math.isnan(one.error) else f' ± {one.error:.1f}')


def _verdict(one: Estimate | None) -> str:
    """The difference, in bold if it counts."""
    if one is None:
        return ''
    text = _text(one, '+')
    return f'**{text}**' if one.counts else text
