#!/usr/bin/env python3
"""Kills, blocks and damages real extractions and caches, and counts the outcomes.

    scripts/torture_cache.py                          all of it, some minutes
    scripts/torture_cache.py --only kills --kills 5   one kind
    scripts/torture_cache.py --rois                   a teacher whose proposals and RoI head are stored too, some more

Every trial ends with reading all of the cache, each map and each tensor of an image's proposals in its own read, and
comparing it with the undisturbed extraction's. `survivors`: all reads were right; `losses`: some reads were refused
by an error that names the cache and none was wrong; `failed`: anything that must not happen: a wrong value, another
error, a crash, a hang, memory without end, or a resumed extraction or a merge that does not give the undisturbed cache.
Exit code 1 if anything failed. The last line is `trials N, wrong reads W`.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from torture import disks
from torture.damages import damages
from torture.journals import journals
from torture.kills import kills, kills_between_files, kills_while_publishing, writers
from torture.merges import merges
from torture.setting import Setting, make_setting
from torture.trials import Trial

KINDS: dict[str, Callable[[Setting, int], Iterator[Trial]]] = {
    'kills': kills,
    'between': kills_between_files,
    'publishing': kills_while_publishing,
    **disks.ALL,
    'damages': damages,
    'journals': journals,
    'merges': merges,
    'writers': writers,
}
DEFAULTS = {
    'kills': 50,
    'between': 20,
    'publishing': 10,
    'full': 25,
    'limit': 10,
    'read-only': 10,
    'frozen': 10,
    'damages': 300,
    'journals': 35,
    'merges': 40,
    'writers': 6,
}


def main() -> int:
    """Runs the command line; 1 when anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in DEFAULTS.items():
        parser.add_argument(f'--{name}', type=int, default=number, metavar='N', help='number of trials (%(default)s)')
    parser.add_argument('--rois', action='store_true', help='use a two-stage teacher, with its proposals')
    parser.add_argument('--only', action='append', choices=DEFAULTS, help='only this kind; repeatable')
    parser.add_argument('--seed', type=int, default=0, help='random seed of the time and place of damage (%(default)s)')
    options = {name.replace('_', '-'): value for name, value in vars(parser.parse_args()).items()}
    torch.set_num_threads(1)
    # The processes that are forked here start no threads before they have set themselves up.
    warnings.filterwarnings('ignore', 'This process .* is multi-threaded', DeprecationWarning)
    ends: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory(prefix='torture-') as folder:
        setting = make_setting(Path(folder), seed=options['seed'], has_rois=options['rois'])
        print(f'one extraction takes {setting.seconds:.2f} s; {len(setting.truth)} reads a cache', flush=True)
        for name in options['only'] or DEFAULTS:
            start = time.monotonic()
            for trial in tqdm(KINDS[name](setting, options[name]), desc=name, total=options[name], unit='trial'):
                ends.setdefault(trial.kind, Counter())[trial.end] += 1
                if trial.end == 'failed':
                    print(f'FAILED {trial.kind}: {trial.note}', flush=True)
            print(f'{name} took {time.monotonic() - start:.0f} s', flush=True)
    return report(ends)


def report(ends: dict[str, Counter[str]]) -> int:
    """Prints the table and the last line."""
    print(f'{"":36} {"trials":>7} {"survivors":>10} {"losses":>7} {"failed":>7}')
    for kind, counts in ends.items():
        print(f'{kind:36} {counts.total():7} {counts["survived"]:10} {counts["lost"]:7} {counts["failed"]:7}')
    total: Counter[str] = sum(ends.values(), Counter())
    print(f'{"all":36} {total.total():7} {total["survived"]:10} {total["lost"]:7} {total["failed"]:7}')
    print(f'trials {total.total()}, wrong reads {total["failed"]}')
    return 1 if total['failed'] else 0


if __name__ == '__main__':
    sys.exit(main())
