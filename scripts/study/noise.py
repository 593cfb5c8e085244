"""How much does box AP depend on which images are evaluated?"""

import json
import statistics
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from study.plan import DATA, FULL, Chain, Stage, chain_name
from study.running import RESULTS, Setting, call, make_images, run_folder

NOISE = RESULTS.parent / 'noise.json'
# Students of seed 0; the others are compared with the first.
STUDENTS: Mapping[str, Chain] = {
    'strong, one stage': (Stage('strong', 2 * FULL),),
    'alone, one stage': (Stage(None, 2 * FULL),),
    'weak, strong': (Stage('weak'), Stage('strong')),
}
SETS = range(100, 110)  # Seeds of validation sets; the study's own has DATA['seed'].


def measure_noise(setting: Setting) -> None:
    """Evaluates trained students on other validation sets, as large as the study's, and writes NOISE."""
    found: dict[str, list[float]] = {label: [] for label in STUDENTS}
    for seed in tqdm(SETS, unit='set'):
        images = setting.work / 'noise' / f'set{seed}'
        make_images(images, num_train=1, num_val=DATA['val'], seed=seed)
        for label, chain in STUDENTS.items():
            scores = setting.work / 'noise' / f'{chain_name(chain)}-{seed}.json'
            if not scores.exists():
                options = ['--coco', images, '--json', scores, '--workers', 0, '--device', setting.device]
                call(['mtpd-eval', run_folder(chain, 0, setting), *options], scores.with_suffix('.log'))
            found[label].append(round(100 * json.loads(scores.read_text())['metrics']['box/AP'], 3))
    NOISE.write_text(json.dumps(found, indent=1) + '\n')


def noise_table() -> str:
    """Standard deviations over the validation sets, of AP and of differences on the same images, as Markdown."""
    if not NOISE.exists():
        return 'Not measured yet.'
    found: dict[str, list[float]] = json.loads(NOISE.read_text())
    baseline, *others = STUDENTS
    lines = [
        f'| | box AP | its deviation between sets | against {baseline} | its deviation |',
        '|---|---|---|---|---|',
        f'| {baseline} | {_spread(found[baseline])} | | |',
    ]
    for label in others:
        gains = [here - there for here, there in zip(found[label], found[baseline], strict=True)]
        lines.append(f'| {label} | {_spread(found[label])} | {_spread(gains, sign="+")} |')
    return '\n'.join(lines)


def _spread(values: Sequence[float], sign: str = '') -> str:
    return f'{statistics.mean(values):{sign}.1f} | {statistics.stdev(values):.2f}'
