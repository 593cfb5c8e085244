"""Does `mtpd-cache order` predict which sequence of teachers makes the best student?"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from scipy.stats import spearmanr

from study.plan import DATA, FULL, QUESTIONS, TEACHERS, Chain, Stage
from study.running import RESULTS, Results, Setting, call, extract, make_cache, make_data, run_folder
from study.tables import Estimate, box_ap

COSTS = RESULTS.parent / 'costs.json'
STUDENT = (Stage(None, FULL),)
CODEC = STUDENT[0].codec
# What a sequence might be judged by, of the costs of its steps; the first step is from the student alone.
PREDICTORS: Mapping[str, Callable[[Sequence[float]], float]] = {
    'largest': max,
    'sum': sum,
    'last': lambda steps: steps[-1],
}


def measure_costs(setting: Setting) -> None:
    """Writes what `mtpd-cache order --json` says of the teachers and the student alone of seed 0, once trained."""
    make_data(setting)
    folder = run_folder(STUDENT, 0, setting)
    student = extract(folder / 'student_config.py', folder / 'student.pth', 'student', CODEC, setting)
    teachers = {make_cache(name, CODEC, setting): name for name in TEACHERS}
    log = setting.work / 'cache' / 'order.json'
    options = ['--student-cache', student, '--num-images', DATA['train'], '--json', '--quiet']
    call(['mtpd-cache', 'order', *teachers, *options], log)
    record = json.loads(log.read_text())
    names = {student.name: 'student', **{cache.name: name for cache, name in teachers.items()}}
    record['costs'] = [one | {'from': names[one['from']], 'to': names[one['to']]} for one in record['costs']]
    record['order'] = [names[name] for name in record['order']]
    kept = {key: record[key] for key in ('costs', 'order', 'resamples', 'same_order')}
    COSTS.write_text(json.dumps(kept, indent=1) + '\n')


def step_costs(chain: Chain, costs: Mapping[tuple[str, str], float]) -> list[float]:
    """The costs of a chain's steps, from the student to the first teacher and on; a teacher costs itself nothing."""
    path = ['student', *(stage.teacher for stage in chain if stage.teacher is not None)]
    return [0.0 if here == there else costs[here, there] for here, there in pairwise(path)]


def order_table(results: Results) -> str:
    """Sequences by their students' AP, with the costs of their steps, and the rank correlation of each predictor."""
    if not COSTS.exists():
        return 'The costs have not been measured yet.'
    record = json.loads(COSTS.read_text())
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
        aps = [ap.mean for ap, _ in rows.values()]
        lines += [
            '',
            '| a sequence is better the less its ... step costs are | rank correlation with AP |',
            '|---|---|',
        ]
        for name, predictor in PREDICTORS.items():
            predicted = [-predictor(steps) for _, steps in rows.values()]
            lines.append(f'| {name} | {spearmanr(predicted, aps).statistic:+.2f} |')
    same = f'{record["same_order"]:.0%} of {record["resamples"]} resamples'
    lines += ['', f'`mtpd-cache order` says: {", then ".join(record["order"])} ({same}).']
    return '\n'.join(lines)
