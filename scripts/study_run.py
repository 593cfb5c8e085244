#!/usr/bin/env python3
"""Runs the study of docs/evidence.md: trains the demo's student in every way of `study/plan.py`, with several seeds.

It needs no more than the repository: the teachers are those of configs/demo/teachers. Each finished stage is a line of
docs/evidence/results.jsonl at once; what has a line is not trained again, so it can be interrupted and resumed.

    scripts/study_run.py --jobs 2                                all of it: hours on two cores
    scripts/study_run.py --questions direct full_stages --seeds 0 1
    scripts/study_run.py --jobs 12 --device cuda                 many small networks on one GPU
"""

import argparse
from pathlib import Path

from study.noise import measure_noise
from study.order import measure_costs
from study.plan import QUESTIONS, chain_name
from study.running import Setting, read_results, run_study


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--questions', nargs='+', choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument('--seeds', nargs='+', type=int, help='of those that each question asks for (all)')
    parser.add_argument('--work', type=Path, default=Path('study'), help='data, caches and students (%(default)s)')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')
    parser.add_argument('--jobs', type=int, default=1, help='programs side by side, one thread each (%(default)s)')
    parser.add_argument('--list', action='store_true', help='only says what is left to train')
    parser.add_argument('--costs', action='store_true', help='only measures adaptation costs of the student alone')
    parser.add_argument('--noise', action='store_true', help='only evaluates trained students on other images')
    options = parser.parse_args()
    wanted = [
        (chain, seed)
        for name in options.questions
        for chain in QUESTIONS[name].rows.values()
        for seed in range(QUESTIONS[name].num_seeds)
        if options.seeds is None or seed in options.seeds
    ]
    if not wanted:
        parser.error(f'--seeds {options.seeds}: none of the questions has such a seed; their seeds are 0 to 4')
    done = read_results()
    left = sorted({(seed, chain_name(chain)) for chain, seed in wanted} - {(seed, name) for name, seed in done})
    print(f'{len(left)} of {len(set(wanted))} chains are left to train')
    setting = Setting(options.work.resolve(), options.device, options.jobs)
    if options.costs:
        measure_costs(setting)
    elif options.noise:
        measure_noise(setting)
    elif options.list:
        print('\n'.join(f'seed {seed}: {name}' for seed, name in left))
    else:
        run_study(wanted, setting)


if __name__ == '__main__':
    main()
