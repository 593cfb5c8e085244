"""Is a way over a weaker teacher worth its epochs, and how coarse may a cache be? A study on the synthetic set.

Trains one small student, for equally many epochs each time: alone, directly from the weak and from the strong teacher,
progressively (weak, then strong) and in the wrong order (strong, then weak), for several losses and seeds; and directly
from the strong teacher's cache in every codec. It takes the teachers of `scripts/demo.sh`, does what is not done yet,
and prints means, spreads and what they show.

    python scripts/study_progressive.py --jobs 2                      all of it, over an hour on two cores
    python scripts/study_progressive.py --losses pkd --seeds 0 --codecs       a part of it
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from coco_sizes import bits_per_element
from demo_table import read_run
from study_report import Result, report, save_plot
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
LEVELS = ['p2', 'p3']
# Weights: for `pkd` the best of 0.3, 1 and 3 with seed 0 (54.9, 58.0, 59.9 AP), for `masked_mse` the demo's.
LOSSES: dict[str, dict[str, Any]] = {
    'masked_mse': {'loss': 'masked_mse', 'levels': LEVELS, 'weight': 1.0},
    'pkd': {'loss': 'pkd', 'levels': LEVELS, 'weight': 3.0},
    'mgd': {'loss': 'mgd', 'levels': LEVELS, 'weight': 1.0, 'normalize': 'mean', 'scale': 'teacher_std'},
}
CODECS = ('fp16', 'int8', 'lean-0.03', 'lean-0.1', 'lean-0.3')
USUAL_CODEC = 'lean-0.03'


@dataclass(frozen=True)
class Run:
    """One training of the student.

    Attributes:
        method: what the table calls it.
        loss: name in LOSSES; None: no teacher.
        codec: of the caches.
        seed: of everything random in it.
        stages: (teacher or None, epochs) of each stage.
    """

    method: str
    loss: str | None
    codec: str
    seed: int
    stages: tuple[tuple[str | None, int], ...]

    @property
    def name(self) -> str:
        """Name of its folder."""
        parts = [self.method.replace(' ', '_'), self.loss, self.codec if self.loss else None, f'seed{self.seed}']
        return '-'.join(part for part in parts if part)


def planned_runs(*, losses: Sequence[str], codecs: Sequence[str], seeds: Sequence[int], epochs: int) -> list[Run]:
    """All runs, seed by seed, so that an interrupted study has whole seeds; the codecs come last."""
    first = round(0.4 * epochs)
    methods: dict[str, tuple[tuple[str | None, int], ...]] = {
        'direct weak': (('weak', epochs),),
        'direct strong': (('strong', epochs),),
        'progressive': (('weak', first), ('strong', epochs - first)),
        'wrong order': (('strong', epochs - first), ('weak', first)),
    }
    runs = []
    for seed in seeds:
        runs.append(Run('alone', None, USUAL_CODEC, seed, ((None, epochs),)))
        runs += [Run(name, loss, USUAL_CODEC, seed, stages) for loss in losses for name, stages in methods.items()]
    for seed in seeds:
        runs += [Run('direct strong', 'masked_mse', codec, seed, methods['direct strong']) for codec in codecs]
    return list(dict.fromkeys(runs))  # The usual codec stands in both.


def make_cache(teacher: str, codec: str, *, demo: Path, out: Path) -> Path:
    """The teacher's cache in a codec, extracted if it is not there."""
    folder = out / 'cache' / f'{teacher}-{codec}'
    name, _, error = codec.partition('-')
    source = demo / f'teacher_{teacher}'
    command: list[str | Path] = [
        'mtpd-extract',
        '--teacher',
        source / 'student_config.py',
        '--checkpoint',
        source / 'student.pth',
    ]
    command += ['--coco', demo / 'shapes', '--out', folder, '--codec', name, '--batch-size', '16', '--workers', '0']
    call([*command, *(['--error', error] if error else [])], log=out / f'cache-{teacher}-{codec}.log')
    return folder


def train(run: Run, *, demo: Path, out: Path) -> Result:
    """Trains, or goes on with what is there, and returns the AP of the last evaluation."""
    files = []
    for number, (teacher, epochs) in enumerate(run.stages, start=1):
        stage = yaml.safe_load((ROOT / 'configs' / 'demo' / 'alone.yaml').read_text())
        stage['seed'], stage['optim']['epochs'], stage['evaluate']['every'] = run.seed, epochs, epochs
        stage['student'], stage['data']['coco'] = str(ROOT / stage['student']), str(demo / 'shapes')
        if number > 1:
            del stage['init']
        if teacher is not None:
            assert run.loss is not None
            stage |= {'cache': str(out / 'cache' / f'{teacher}-{run.codec}'), 'distill': [LOSSES[run.loss]]}
        files.append(out / 'stages' / f'{run.name}.{number}.yaml')
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        files[-1].write_text(yaml.safe_dump(stage, sort_keys=False))
    folder = out / 'runs' / run.name
    call(['mtpd-train', *files, '--out', folder, '--resume'], log=out / f'run-{run.name}.log')
    return Result(run.method, run.loss, run.codec, run.seed, read_run(folder)[0])


def call(command: Sequence[str | Path], *, log: Path) -> None:
    """Runs a program of this installation on one thread; what it says goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    program, *arguments = map(str, command)
    with log.open('w') as output:
        code = subprocess.run(
            [Path(sys.executable).parent / program, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {'OMP_NUM_THREADS': '1'},
            check=False,
        ).returncode
    if code:
        sys.exit(f'{program} ended with {code}; its last line: {log.read_text().strip().splitlines()[-1:]} ({log})')


def main() -> None:
    """Runs the study and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--demo', type=Path, default=Path('demo'), help='folder of scripts/demo.sh, with its teachers')
    parser.add_argument(
        '--out', type=Path, default=Path('study'), help='folder of the study; goes on with what is there'
    )
    parser.add_argument('--losses', nargs='*', default=['masked_mse', 'pkd'], choices=list(LOSSES))
    parser.add_argument('--codecs', nargs='*', default=CODECS, choices=list(CODECS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=10, help='of every student, in all its stages')
    parser.add_argument('--jobs', type=int, default=1, help='trainings side by side, one thread each')
    options = parser.parse_args()
    demo, out = options.demo.resolve(), options.out.resolve()
    if not (demo / 'teacher_strong' / 'student.pth').exists():
        parser.error(f'--demo {options.demo}: has no trained teachers; run scripts/demo.sh first')
    runs = planned_runs(losses=options.losses, codecs=options.codecs, seeds=options.seeds, epochs=options.epochs)
    needed = {(teacher, run.codec) for run in runs for teacher, _ in run.stages if teacher is not None}
    results: list[Result] = []
    with ThreadPoolExecutor(options.jobs) as pool:
        list(tqdm(pool.map(lambda key: make_cache(*key, demo=demo, out=out), sorted(needed)), desc='caches'))
        finished = pool.map(lambda run: train(run, demo=demo, out=out), runs)
        results += tqdm(finished, total=len(runs), unit='run', desc='students')
    bits = {codec: bits_per_element(out / 'cache' / f'strong-{codec}') for codec in options.codecs}
    teachers = {name: read_run(demo / f'teacher_{name}')[0] for name in ('weak', 'strong')}
    (out / 'results.json').write_text(json.dumps([vars(result) for result in results], indent=1))
    print(f'teachers: weak {teachers["weak"]:.1f}, strong {teachers["strong"]:.1f} box AP')
    report(results, bits=bits, usual_codec=USUAL_CODEC)
    save_plot(results, bits=bits, usual_codec=USUAL_CODEC, teachers=teachers, out=out / 'study.png')
    keys = {(one.method, one.loss, one.codec) for one in results}
    groups = [[one.ap for one in results if (one.method, one.loss, one.codec) == key] for key in keys]
    spreads = [statistics.stdev(group) for group in groups if len(group) > 1]
    if spreads:
        print(f'seeds spread the AP of one setting by {statistics.mean(spreads):.1f} (mean standard deviation)')
    print(f'{out / "study.png"}: the plot')


if __name__ == '__main__':
    main()
