"""Trains the chains of the study by the programs of mtpd, each stage once, and keeps a JSON line of each."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import yaml
from tqdm import tqdm

from study.plan import DATA, LOSSES, Chain, Stage, chain_name

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / 'docs' / 'evidence' / 'results.jsonl'
Results = dict[tuple[str, int], float]


@dataclass(frozen=True)
class Setting:
    """Where the study runs.

    Attributes:
        work: data, caches and students; can be removed afterwards.
        device: as `mtpd-train --device` takes it.
        num_jobs: programs side by side, one thread each.
    """

    work: Path
    device: str
    num_jobs: int


def read_results(file: Path = RESULTS) -> Results:
    """(chain, seed) -> box AP, 0 to 100."""
    lines = file.read_text().splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines]
    return {(record['chain'], record['seed']): record['ap'] for record in records}


def run_study(wanted: Sequence[tuple[Chain, int]], setting: Setting) -> None:
    """Trains what has no result yet; chains that begin alike share their first stages."""
    done = read_results()
    missing = [(chain, seed) for chain, seed in wanted if (chain_name(chain), seed) not in done]
    if not missing:
        return
    make_data(setting)
    needed = dict.fromkeys((chain[:length], seed) for chain, seed in missing for length in range(1, len(chain) + 1))
    # Seed by seed, so that an interrupted study has whole seeds, and first what others build on.
    tasks = sorted(needed, key=lambda task: (task[1], len(task[0])))
    stages = [stage for chain, _ in tasks for stage in chain]
    caches = sorted({(one, stage.codec) for stage in stages for one in (stage.teacher, stage.other) if one})
    lock = Lock()
    with ThreadPoolExecutor(setting.num_jobs) as pool:
        list(tqdm(pool.map(lambda key: make_cache(key[0], key[1], setting), caches), total=len(caches), desc='caches'))
        futures: dict[tuple[Chain, int], Future[None]] = {}
        with tqdm(total=len(tasks), unit='stage', desc='students') as progress:
            for chain, seed in tasks:
                parent = futures.get((chain[:-1], seed))
                future = pool.submit(_train_after, parent, chain, seed, setting=setting, lock=lock)
                future.add_done_callback(lambda _: progress.update())
                futures[chain, seed] = future
            try:
                for future in futures.values():
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _train_after(parent: 'Future[None] | None', chain: Chain, seed: int, *, setting: Setting, lock: Lock) -> None:
    if parent is not None:
        parent.result()
    record = train_stage(chain, seed, setting)
    with lock:
        before = read_results().get((record['chain'], seed))
        if before is None:
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            with RESULTS.open('a') as file:
                file.write(json.dumps(record) + '\n')
        elif abs(before - record['ap']) > 0.005:
            tqdm.write(f'{record["chain"]}, seed {seed}: {record["ap"]:.2f} AP here, {before:.2f} in {RESULTS}')


def make_data(setting: Setting) -> None:
    """The student's images: few to train on, many to evaluate on."""
    make_images(setting.work / 'shapes', num_train=DATA['train'], num_val=DATA['val'], seed=DATA['seed'])


def make_images(folder: Path, *, num_train: int, num_val: int, seed: int) -> None:
    """A synthetic set, made if it is not there."""
    arguments = ['--train', num_train, '--val', num_val, '--seed', seed]
    call(['python', ROOT / 'scripts/make_synthetic.py', folder, *arguments], beside(folder, '.log'))


def make_cache(teacher: str, codec: str, setting: Setting) -> Path:
    """The teacher's cache in a codec, extracted if it is not there."""
    source = ROOT / 'configs' / 'demo' / 'teachers' / teacher
    return extract(source.with_suffix('.py'), source.with_suffix('.pth'), f'{teacher}-{codec}', codec, setting)


def extract(config: Path, checkpoint: Path, name: str, codec: str, setting: Setting) -> Path:
    """The cache of a network; levels p3 and p4 alone, since the objects are too small for p5."""
    folder = setting.work / 'cache' / name
    kind, _, error = codec.partition('-')
    command: list[object] = [
        'mtpd-extract',
        '--teacher',
        config,
        '--checkpoint',
        checkpoint,
        '--coco',
        setting.work / 'shapes',
    ]
    # RetinaNet's p5 is constant, since the objects are too small for it; the RoI head of Faster R-CNN uses it.
    levels = 'p3,p4,p5' if name.startswith('faster') else 'p3,p4'
    command += ['--out', folder, '--levels', levels, '--codec', kind, *(['--error', error] if error else [])]
    command += ['--batch-size', 16, '--workers', 0, '--device', setting.device]
    call(command, beside(folder, '.log'))
    return folder


def train_stage(chain: Chain, seed: int, setting: Setting) -> dict[str, Any]:
    """Trains the last stage of a chain from the student of the stages before, and returns its record."""
    folder = run_folder(chain, seed, setting)
    file = beside(folder, '.yaml')
    file.parent.mkdir(parents=True, exist_ok=True)
    before = run_folder(chain[:-1], seed, setting) / 'student.pth' if len(chain) > 1 else None
    file.write_text(yaml.safe_dump(stage_file(chain[-1], seed, len(chain), before, setting), sort_keys=False))
    call(['mtpd-train', file, '--out', folder, '--device', setting.device, '--resume'], beside(folder, '.log'))
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    metrics = [record['metrics'] for record in records if record['kind'] == 'evaluation'][-1]
    losses = [record['losses']['total'] for record in records if record['kind'] == 'train' and 'losses' in record]
    return {
        'chain': chain_name(chain),
        'seed': seed,
        'ap': round(100 * metrics['box/AP'], 3),
        'ap50': round(100 * metrics['box/AP50'], 3),
        'first_loss': round(losses[0], 4) if losses else None,
        'last_loss': round(losses[-1], 4) if losses else None,
    }


def run_folder(chain: Chain, seed: int, setting: Setting) -> Path:
    """Where a chain's student is."""
    return setting.work / 'students' / f'seed{seed}' / chain_name(chain)


def beside(folder: Path, suffix: str) -> Path:
    """A file next to a folder. Names have dots: `Path.with_suffix` would turn `lean-0.1` and `lean-0.3` into one."""
    return folder.parent / f'{folder.name}{suffix}'


def stage_file(stage: Stage, seed: int, number: int, before: Path | None, setting: Setting) -> dict[str, Any]:
    """The stage file of stage `number`, counted from 1, of a chain; `before`: the student of the stages before."""
    content: dict[str, Any] = yaml.safe_load((ROOT / 'configs' / 'demo' / 'alone.yaml').read_text())
    content['student'] = str(ROOT / 'configs' / 'demo' / f'{stage.student}.py')
    content['data']['coco'] = str(setting.work / 'shapes')
    content['seed'] = 100 * (number - 1) + seed  # The second stage sees the images in another order.
    content['evaluate']['every'] = content['optim']['epochs'] = stage.epochs
    content['optim']['lr'] *= stage.lr
    if stage.weight_decay is not None:
        content['optim']['weight_decay'] = stage.weight_decay
    if stage.warmup is not None:
        steps_per_epoch = -(-DATA['train'] // content['data']['batch_size'])
        content['optim']['warmup_iters'] = round(stage.warmup * stage.epochs * steps_per_epoch)
    content['init'] = {'backbone': 'none'} if before is None else {'checkpoint': str(before)}
    if stage.inherit:
        content['init']['inherit'] = ['neck', 'head']
    if stage.teacher is not None:
        names = [f'{one}-{stage.codec}' for one in (stage.teacher, stage.other) if one is not None]
        places = [str(setting.work / 'cache' / name) for name in names]
        entries = [distill_entry(one, stage) for one in LOSSES[stage.loss]]
        content['cache'], content['distill'] = (places, entries) if stage.other else (places[0], entries)
        if stage.fade:
            content['distill'] = [
                entry | {'teacher': name, 'decay': {'kind': 'linear', 'rise': rise}}
                for name, rise in zip(names, (False, True), strict=True)
                for entry in entries
            ]
    return content


def distill_entry(loss: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """An entry of the stage file's `distill`: that of LOSSES with what the stage changes."""
    entry = dict(loss)
    if stage.weight != 1:
        entry['weight'] *= stage.weight
    if stage.decay:
        entry['decay'] = {'kind': 'linear'}
    if stage.adapter:
        entry['adapter'] = 'always'
    return entry


def call(command: Iterable[object], log: Path) -> None:
    """Runs a program of this installation on one thread; what it says goes to `log`.

    Raises:
        SystemExit: it failed; names its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    program, *arguments = map(str, command)
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONDONTWRITEBYTECODE'}
    with log.open('w') as output:
        code = subprocess.run(
            [Path(sys.executable).parent / program, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | {'OMP_NUM_THREADS': '1'},
            check=False,
        ).returncode
    if code:
        sys.exit(f'{program} ended with {code}; its last line: {log.read_text().strip().splitlines()[-1:]} ({log})')
