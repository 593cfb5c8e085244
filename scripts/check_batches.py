#!/usr/bin/env python3
"""Whether batches of one padded size change what a student learns, against batches of random images of one orientation.

    scripts/check_batches.py --seeds 5 --jobs 2      # about 20 minutes on two cores

Trains the demo's student on a synthetic set of images of many sizes both ways, with the same seeds, and evaluates on
500 other images. Prints both APs of each seed, and last `shape-minus-mixed D standard-error E`, in points of AP.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from measuring import described_parser
from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.geometry import Size
from mtpd_train.cli import main as mtpd_train
from mtpd_train.data.sampling import Request, training_batches

STUDENT = Path(__file__).resolve().parents[1] / 'configs' / 'demo' / 'student.py'
SIZES = ((128, 128), (96, 128), (128, 96), (80, 128), (128, 80), (64, 128), (128, 64), (112, 128))


def mixed_batches(
    padded: Mapping[int, Size], *, batch_size: int, flip: float, seed: Sequence[int], **_: Any
) -> list[list[Request]]:
    """Batches of random landscape or portrait images, as of mmdet's sampler; those left over come together."""
    # Views are drawn as in the other way.
    views = dict(one for batch in training_batches(padded, batch_size=1, flip=flip, seed=seed) for one in batch)
    shuffled = np.random.default_rng((*seed, 1)).permutation(sorted(padded)).tolist()
    batches: list[list[Request]] = []
    waiting: dict[bool, list[Request]] = {False: [], True: []}
    for image_id in shuffled:
        batch = waiting[padded[image_id][0] > padded[image_id][1]]
        batch.append(Request(image_id, views[image_id]))
        if len(batch) == batch_size:
            batches.append(batch.copy())
            batch.clear()
    rest = waiting[False] + waiting[True]
    return batches + [rest[start : start + batch_size] for start in range(0, len(rest), batch_size)]


def trained(run: tuple[int, str], *, root: Path, epochs: int) -> float:
    """AP of the student of a seed and a way."""
    seed, way = run
    out, stage = root / f'{way}-{seed}', root / f'{way}-{seed}.yaml'
    optim = {
        'type': 'adamw',
        'lr': 8e-3,
        'weight_decay': 0.5,
        'epochs': epochs,
        'schedule': 'onecycle',
        'grad_clip': 10,
    }
    content = {
        'student': str(STUDENT),
        'init': {'backbone': 'none'},
        'data': {'coco': str(root / 'shapes'), 'batch_size': 8, 'workers': 0, 'geometry': {'scale': [128, 128]}},
        'optim': optim | {'epochs': epochs},
        'evaluate': {'every': epochs},
        'seed': seed,
    }
    stage.write_text(json.dumps(content))
    batches = mixed_batches if way == 'mixed' else training_batches
    with mock.patch('mtpd_train.stage.training_batches', batches):
        mtpd_train.main([str(stage), '--out', str(out), '--quiet', '--device', 'cpu'], standalone_mode=False)
    records = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
    return 100 * float([one for one in records if 'metrics' in one][-1]['metrics']['box/AP'])


def main() -> None:
    parser: argparse.ArgumentParser = described_parser(__doc__)
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--images', type=int, default=600, help='for training; %(default)s')
    parser.add_argument('--jobs', type=int, default=1, help='processes side by side')
    arguments = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    runs = [(seed, way) for seed in range(arguments.seeds) for way in ('shape', 'mixed')]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        num_val = min(500, arguments.images)
        spec = SyntheticSpec(num_train=arguments.images, num_val=num_val, sizes=SIZES, seed=3)
        make_synthetic_set(root / 'shapes', spec)
        context = multiprocessing.get_context('spawn')
        with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            found = dict(zip(runs, pool.map(partial(trained, root=root, epochs=arguments.epochs), runs), strict=True))
    differences = []
    print('seed  shape  mixed')
    for seed in range(arguments.seeds):
        shape, mixed = (found[seed, way] for way in ('shape', 'mixed'))
        differences.append(shape - mixed)
        print(f'{seed:>4}{shape:>7.1f}{mixed:>7.1f}')
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float('nan')
    print(f'shape-minus-mixed {statistics.mean(differences):.2f} standard-error {error:.2f}')


if __name__ == '__main__':
    main()
