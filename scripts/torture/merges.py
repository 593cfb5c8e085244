"""Joining the folders of two parts: killed in the middle and called again, or with a part that was damaged."""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from mtpd_extract.cache_tools.cli import main
from torture.journals import KINDS
from torture.setting import Run, Setting, contents, extract, require_done, running
from torture.trials import Trial, judged


def merges(setting: Setting, number: int) -> Iterator[Trial]:
    """In turn: `kill -9` at any moment of a merge, and a part that was damaged before it."""
    parts = [setting.fresh('part') for _ in range(2)]
    for index, part in enumerate(parts, start=1):
        require_done(extract(setting.subject, part, '--part', f'{index}/2'))
    before = [contents(part) for part in parts]
    seconds = _duration(setting, parts)
    for trial in range(number):
        yield _damaged(setting, parts) if trial % 2 else _killed(setting, parts, seconds=seconds)
        if [contents(part) for part in parts] != before:
            yield Trial('merge', 'failed', 'it changed the parts')


def _merging(setting: Setting, parts: Sequence[Path], out: Path) -> AbstractContextManager[Run]:
    arguments = ['merge', *map(str, parts), '--out', str(out)]
    return running(main, arguments, setting.subject.folder / 'stderr' / out.name)


def _duration(setting: Setting, parts: Sequence[Path]) -> float:
    start = time.monotonic()
    with _merging(setting, parts, setting.fresh('merged')) as run:
        require_done(run.wait())
    return time.monotonic() - start


def _killed(setting: Setting, parts: Sequence[Path], *, seconds: float) -> Trial:
    out, delay = setting.fresh('merged'), setting.random.uniform(0, seconds)
    with _merging(setting, parts, out) as run:
        time.sleep(delay)
        was_running = run.kill()
    what = f'killed after {delay:.3f} s'
    if not was_running:
        return _whole('merge, killed too late', out, setting, what=what)
    is_finished = (out / 'manifest.json').exists()
    with _merging(setting, parts, out) as run:
        code, line = run.wait()
    if code == 0 or (is_finished and 'holds a finished cache' in line):
        return _whole('merge, killed', out, setting, what=what)
    return Trial('merge, killed', 'failed', f'{what}: called again it ended with {code}: {line}')


def _whole(kind: str, out: Path, setting: Setting, *, what: str) -> Trial:
    trial = judged(kind, out, setting, what=what)
    # The journals of a merge that was killed while it tidied up may still be there.
    wanted = contents(setting.reference['mine'])
    found = contents(out)
    if trial.end != 'survived' or any(found.get(name) != content for name, content in wanted.items()):
        return Trial(kind, 'failed', f'{what}: {trial.note}, or other files than in the undisturbed cache')
    shutil.rmtree(out)
    return trial


def _damaged(setting: Setting, parts: Sequence[Path]) -> Trial:
    """A merge verifies all that it takes: it gives the undisturbed maps, or one line."""
    copies = [Path(shutil.copytree(part, setting.fresh('copy'))) for part in parts]
    kind = setting.random.choice([*KINDS])
    what = f'{kind}: {KINDS[kind](setting.random.choice(copies), setting)}'
    out = setting.fresh('merged')
    with _merging(setting, copies, out) as run:
        code, line = run.wait()
    names = [*map(str, copies), str(copies[0].parent)]
    if code == 0:
        trial = judged('merge of a damaged part', out, setting, what=what)
        trial = trial if trial.end == 'survived' else Trial(trial.kind, 'failed', trial.note)
    elif code == 1 and any(name in line for name in names) and 'this is a bug' not in line:
        trial = Trial('merge of a damaged part', 'lost', line)
    else:
        trial = Trial('merge of a damaged part', 'failed', f'{what}: ended with {code}: {line}')
    for folder in [*copies, out]:
        shutil.rmtree(folder, ignore_errors=True)
    return trial
