"""Trains a student of every family of mmdet's zoo for two steps, alone and from a cache, and compares it with mmdet.

    python scripts/student_sweep.py --out students.jsonl                       all families, on the CPU
    python scripts/student_sweep.py --out students.jsonl --family ssd --family pvt     these, even if the file has them

A student works when plain and distilled training end, `mtpd-eval` finds what training's own evaluation found, and
mmdet's `init_detector` predicts the same boxes, scores and masks from the files that training left. Images are tiny and
weights random. Every family runs in a process of its own, so that a crash, a lack of memory or a hang is one line:

    works     as above
    refused   by one line with the text that the table of families expects
    unclear   by any other message
    wrong     it trains, but its predictions differ from those of mmdet, or it does not load

The last line is `students N of M, refused R, unclear U, wrong W`, of all families or of those selected.
"""

import argparse
import importlib
import json
import multiprocessing
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from sweep.families import FAMILIES
from sweep.setting import make_cache, make_set
from sweep.trial import Outcome, try_student

from mtpd.detectors.runtime import prepare

MEMORY_LIMIT = 16 << 30  # bytes of address space


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--family', action='append', default=[], choices=FAMILIES, metavar='F', help='only this family; repeatable'
    )
    parser.add_argument('--timeout', type=float, default=300, help='seconds for one family (default 300)')
    parser.add_argument('--out', type=Path, help='file to append results to; families already in it are skipped')
    parser.add_argument('--work', type=Path, help='keep runs and logs in this folder, without checkpoints')
    options = parser.parse_args(arguments)
    chosen = options.family or list(FAMILIES)
    known = {} if options.family else _read(options.out)
    torch.set_num_threads(1)
    # Here, and not in each process.
    prepare()
    for program in ('mtpd_extract.run', 'mtpd_train.run', 'mtpd_train.evaluator.run'):
        importlib.import_module(program)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        outcomes = {}
        for name in chosen:
            started = time.monotonic()
            outcomes[name] = known.get(name) or run_trial(name, work=work, timeout=options.timeout)
            seconds = time.monotonic() - started
            # A family's checkpoints take up to 2 GB.
            for checkpoint in (work / name).rglob('*.pth'):
                checkpoint.unlink()
            if name not in known and options.out is not None:
                record = {'family': name, **vars(outcomes[name]), 'seconds': round(seconds, 1)}
                with options.out.open('a') as file:
                    file.write(json.dumps(record) + '\n')
            print(f'{name:22} {outcomes[name].verdict:8} {outcomes[name].reason}', flush=True)
    print(summary(outcomes.values()))


def summary(outcomes: Iterable[Outcome]) -> str:
    """The last line."""
    verdicts = [one.verdict for one in outcomes]
    others = ', '.join(f'{verdict} {verdicts.count(verdict)}' for verdict in ('refused', 'unclear', 'wrong'))
    return f'students {verdicts.count("works")} of {len(verdicts)}, {others}'


def run_trial(name: str, *, work: Path, timeout: float) -> Outcome:
    """The trial of a family, in a process of its own."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_trial, args=(name, work, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return Outcome('unclear', f'took more than {timeout:g} s')
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        return Outcome(
            'unclear', f'the process died: {signal.Signals(-code).name if code < 0 else f"exit code {code}"}'
        )
    else:
        return outcome
    finally:
        process.kill()
        process.join()


def _trial(name: str, work: Path, sender: 'multiprocessing.connection.Connection') -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    family = FAMILIES[name]
    try:
        work.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work / name, ignore_errors=True)
        coco = make_set(work, num_classes=family.num_classes)
        cache = make_cache(work, coco, family)
        sender.send(try_student(family, coco=coco, cache=cache, folder=work / name))
    except Exception as error:
        (work / f'{name}.log').write_text(traceback.format_exc())
        sender.send(Outcome('unclear', f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'))


def _read(path: Path | None) -> dict[str, Outcome]:
    """The latest outcome of each family in a file of results."""
    if path is None or not path.is_file():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return {one['family']: Outcome(one['verdict'], one['reason']) for one in records}


if __name__ == '__main__':
    main()
