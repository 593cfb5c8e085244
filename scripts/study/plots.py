"""Plots of the study: every seed a dot, every mean with two standard errors."""

from pathlib import Path

from study.plan import Question
from study.running import Results
from study.tables import by_seed, difference


def save_plot(question: Question, results: Results, file: Path) -> None:
    """Draws how far each row is from the first, seed by seed; does nothing before two rows are trained."""
    from matplotlib.figure import Figure

    baseline, *others = question.rows.items()
    reference = by_seed(results, baseline[1])
    rows = [(label, chain) for label, chain in others if reference.keys() & by_seed(results, chain).keys()]
    if not rows:
        return
    figure = Figure(figsize=(7, 0.9 + 0.36 * len(rows)), layout='constrained')
    axes = figure.subplots()
    for height, (_, chain) in enumerate(rows):
        values = by_seed(results, chain)
        dots = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
        axes.plot(dots, [height] * len(dots), 'o', color='C0', alpha=0.35, markersize=4)
        mean = difference(results, chain, baseline[1])
        if mean is not None:
            error = 2 * mean.error if mean.num_seeds > 1 else 0
            axes.errorbar([mean.mean], [height], xerr=[error], fmt='D', color='C1', capsize=3, markersize=5)
    axes.axvline(0, color='grey', linewidth=0.8)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f'box AP less that of "{baseline[0]}" (dots: seeds; bars: two standard errors)', fontsize=8)
    axes.set_title(question.title, fontsize=10)
    figure.savefig(file, dpi=110)
