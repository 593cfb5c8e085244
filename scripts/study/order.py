"""Does `mtpd-cache order` predict which sequence of teachers makes the best student?"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from study.plan import FULL, QUESTIONS, Chain, Stage
from study.running import RESULTS, Results, Setting, call, make_cache, make_data, run_folder
from study.tables import Estimate, box_ap, spearman

COSTS = RESULTS.parent / 'costs.json'
TEACHERS = ('weak', 'transformer', 'strong')
STUDENT = (Stage(None, FULL),)
# What a sequence might be judged by, of the costs of its steps; the first step is from the student alone.
PREDICTORS: Mapping[str, Callable[[Sequence[float]], float]] = {
    'largest': max,
    'sum': sum,
    'last': lambda steps: steps[-1],
}


def measure_costs(setting: Setting, *, seed: int = 0, file: Path = COSTS) -> None:
    """Writes what `mtpd-cache order --json` says of the three teachers and the student alone, which must be trained.

    Args:
        setting: of the study.
        seed: of the student alone.
        file: where to.
    """
    make_data(setting)
    folder, caches = run_folder(STUDENT, seed, setting), setting.work / 'cache'
    student = caches / f'student-seed{seed}'
    how = ['--levels', 'p3,p4', '--codec', 'lean', '--batch-size', '16', '--workers', '0', '--device', setting.device]
    source = ['--teacher', folder / 'student_config.py', '--checkpoint', folder / 'student.pth']
    call(
        ['mtpd-extract', *source, '--coco', setting.work / 'shapes', '--out', student, *how],
        student.with_suffix('.log'),
    )
    teachers = [make_cache(name, 'lean-0.03', setting) for name in TEACHERS]
    log = caches / 'order.json'
    call(['mtpd-cache', 'order', *teachers, '--student-cache', student, '--json', '--num-images', '300'], log)
    # The progress bar writes to the same file, so the record starts at its first brace.
    text = log.read_text()
    record = json.loads(text[text.index('{') :])
    names = {'student': 'student', **{f'{name}-lean-0.03': name for name in TEACHERS}, student.name: 'student'}
    record['costs'] = [one | {'from': names[one['from']], 'to': names[one['to']]} for one in record['costs']]
    record['order'] = [names[name] for name in record['order']]
    kept = {key: record[key] for key in ('costs', 'order', 'resamples', 'same_order', 'reasons')}
    file.write_text(json.dumps(kept, indent=1) + '\n')


def step_costs(chain: Chain, costs: Mapping[tuple[str, str], float]) -> list[float]:
    """The costs of a chain's steps, from the student to the first teacher and on; a teacher costs itself nothing."""
    path = ['student', *(stage.teacher for stage in chain if stage.teacher is not None)]
    return [0.0 if here == there else costs[here, there] for here, there in pairwise(path)]


def order_table(results: Results, file: Path = COSTS) -> str:
    """Sequences by their students' AP, with the costs of their steps, and the rank correlation of each predictor."""
    if not file.exists():
        return 'The costs have not been measured yet.'
    record = json.loads(file.read_text())
    costs = {(one['from'], one['to']): one['cost'] for one in record['costs']}
    rows: dict[str, tuple[Estimate, list[float]]] = {}
    for label, chain in QUESTIONS['full_stages'].rows.items():
        ap = box_ap(results, chain)
        if ap is not None and all(stage.teacher is not None for stage in chain):
            rows[label] = (ap, step_costs(chain, costs))
    lines = ['| sequence | box AP | cost of each step |', '|---|---|---|']
    for label, (ap, steps) in sorted(rows.items(), key=lambda row: -row[1][0].mean):
        lines.append(f'| {label} | {ap.mean:.1f} | {", ".join(f"{cost:.3f}" for cost in steps)} |')
    if len(rows) > 2:
        aps = {label: ap.mean for label, (ap, _) in rows.items()}
        lines += [
            '',
            '| a sequence is better the less its ... step costs are | rank correlation with AP |',
            '|---|---|',
        ]
        for name, predictor in PREDICTORS.items():
            predicted = {label: -predictor(steps) for label, (_, steps) in rows.items()}
            lines.append(f'| {name} | {spearman(predicted, aps):+.2f} |')
    same = f'{record["same_order"]:.0%} of {record["resamples"]} resamples'
    lines += ['', f'`mtpd-cache order` says: {", then ".join(record["order"])} ({same}).']
    return '\n'.join(lines)
