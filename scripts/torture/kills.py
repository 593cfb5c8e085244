"""`kill -9` in the middle of an extraction, and two writers on one cache."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtpd.cache.format.basis import BASIS_FILE
from torture.setting import Run, Setting, extract, extracting, group_files, num_committed, wait_until
from torture.trials import Trial, judged, resumed


def kills(setting: Setting, number: int) -> Iterator[Trial]:
    """At moments that are uniform over the whole run, from its start to its end."""
    for _ in range(number):
        out, delay = setting.fresh('kill'), setting.random.uniform(0, setting.seconds)
        with extracting(setting.subject, out) as run:
            time.sleep(delay)
            was_running = run.kill()
        kind = 'kill -9 at any moment' if was_running else 'kill -9 that came too late'
        yield resumed(kind, out, setting, what=f'killed after {delay:.3f} s with {num_committed(out)} shards')


def kills_between_files(setting: Setting, number: int) -> Iterator[Trial]:
    """As soon as one file of a shard group, of any array, is in place and the next ones are not."""
    groups = group_files(setting.reference['mine'])
    files = [file for names in groups.values() for file in names]
    for _ in range(number):
        out, file = setting.fresh('between'), setting.random.choice(files)
        with extracting(setting.subject, out) as run:
            wait_until((out / file).exists, run)
            run.kill()
        numbers = [sum((out / name).exists() for name in names) for names in groups.values()]
        is_between = any(0 < found < len(names) for found, names in zip(numbers, groups.values(), strict=True))
        kind = 'kill -9 between files of a group' if is_between else 'kill -9 between groups'
        yield resumed(kind, out, setting, what=f'killed behind {file} with {num_committed(out)} shards')


def kills_while_publishing(setting: Setting, number: int) -> Iterator[Trial]:
    """In the few milliseconds around the last shard and the manifest, which a uniform moment hardly ever meets."""
    num_shards = len(group_files(setting.reference['mine']))
    for _ in range(number):
        out = setting.fresh('publish')
        with extracting(setting.subject, out) as run:
            wait_until(lambda out=out: num_committed(out) >= num_shards - 1, run)  # type: ignore[misc]
            time.sleep(setting.random.uniform(0, 0.1 * setting.seconds))
            was_running = run.kill()
        kind = 'kill -9 while publishing' if was_running else 'kill -9 that came too late'
        yield resumed(kind, out, setting, what=f'killed with {num_committed(out)} shards')


def writers(setting: Setting, number: int) -> Iterator[Trial]:
    """The second of two writers is told of the first; one that was killed is in nobody's way."""
    num_shards = len(group_files(setting.reference['mine']))
    for trial in range(number):
        out, least = setting.fresh('writers'), setting.random.randrange(num_shards // 2)
        with extracting(setting.subject, out) as run:
            # Earlier it may hold the gate, for which the second one would wait.
            wait_until((out / BASIS_FILE).exists, run)
            wait_until(lambda out=out, least=least: num_committed(out) >= least, run)  # type: ignore[misc]
            run.pause()
            yield _second_writer(setting, out, run, options=('--overwrite',) if trial % 2 else ())
            run.kill()
        if _holder(out):
            yield resumed('lock of a dead process', out, setting, what='after a killed writer')
        else:
            yield Trial('lock of a dead process', 'failed', 'the killed writer left no holder: nothing was tested')


def _second_writer(setting: Setting, out: Path, run: Run, *, options: Sequence[str]) -> Trial:
    code, line = extract(setting.subject, out, *options)
    if code != 1 or f'process {run.process.pid} on' not in line or 'is writing this cache' not in line:
        return Trial('two writers', 'failed', f'the second one ended with {code}: {line}')
    trial = judged('two writers', out, setting, what='while the first one was in the middle')
    return Trial('two writers', 'survived') if trial.end == 'lost' else Trial('two writers', 'failed', trial.note)


def _holder(out: Path) -> str:
    path = out / '.lock.holder'
    return path.read_text() if path.exists() else ''
