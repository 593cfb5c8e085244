"""The table at the end of the demo: AP, speed and cache size, read from what the programs wrote.

python scripts/demo_table.py FOLDER
"""

import json
import statistics
import sys
from pathlib import Path

from mtpd_extract.output_folder import folder_bytes

TEACHERS = ('weak', 'strong')
STUDENTS = {'alone': (), 'direct': ('strong',), 'progressive': ('weak', 'strong')}


def read_run(folder: Path) -> tuple[float, float]:
    """The last box AP (0..100) and the median training speed (images/s) of a run."""
    records = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    ap = [record['metrics']['box/AP'] for record in records if record['kind'] == 'evaluation'][-1]
    speed = statistics.median(record['images_per_second'] for record in records if record['kind'] == 'train')
    return 100 * ap, speed


def main(folder: Path) -> None:
    print(f'{"":<16}{"box AP":>8}{"images/s":>10}{"cache MB":>10}')
    for name in TEACHERS:
        metrics = json.loads((folder / f'teacher_{name}.json').read_text())['metrics']
        print(f'{f"{name} teacher":<16}{100 * metrics["box/AP"]:>8.1f}{"-":>10}{"-":>10}')
    aps = {}
    for name, teachers in STUDENTS.items():
        aps[name], speed = read_run(folder / name)
        size = sum(folder_bytes(folder / 'cache' / teacher) for teacher in teachers) / 1e6
        print(f'{name:<16}{aps[name]:>8.1f}{speed:>10.1f}{f"{size:.1f}" if size else "-":>10}')
    print('student AP: ' + ', '.join(f'{name} {ap:.1f}' for name, ap in aps.items()))


if __name__ == '__main__':
    main(Path(sys.argv[1] if len(sys.argv) > 1 else 'demo'))
