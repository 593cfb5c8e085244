"""Wall-clock time of `--help` of every program, best of several runs.

    python scripts/bench_help.py

Last line: `slowest S` in seconds.
"""

import subprocess
import sys
import timeit
import tomllib
from functools import partial
from pathlib import Path

from measuring import described_parser

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = described_parser(__doc__)
    parser.add_argument('--runs', type=int, default=5)
    arguments = parser.parse_args()
    programs = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
    best = {}
    for program in sorted(programs):
        command = [Path(sys.executable).parent / program, '--help']
        run = partial(subprocess.run, command, capture_output=True, check=True)
        best[program] = min(timeit.repeat(run, number=1, repeat=arguments.runs))
    print(f'{"program":<16}{"seconds":>8}')
    for program, seconds in best.items():
        print(f'{program:<16}{seconds:>8.2f}')
    print(f'slowest {max(best.values()):.2f}')


if __name__ == '__main__':
    main()
