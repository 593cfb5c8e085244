"""Wall-clock time of `--help` of every program, best of several runs.

    python scripts/bench_help.py

Last line: `slowest S` in seconds.
"""

import subprocess
import sys
import time
import tomllib
from pathlib import Path

from measuring import described_parser

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = described_parser(__doc__)
    parser.add_argument('--runs', type=int, default=5)
    arguments = parser.parse_args()
    programs = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
    best = {program: min(_seconds(program) for _ in range(arguments.runs)) for program in sorted(programs)}
    print(f'{"program":<16}{"seconds":>8}')
    for program, seconds in best.items():
        print(f'{program:<16}{seconds:>8.2f}')
    print(f'slowest {max(best.values()):.2f}')


def _seconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).parent / program, '--help'], capture_output=True, check=True)
    return time.perf_counter() - start


if __name__ == '__main__':
    main()
