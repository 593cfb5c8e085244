"""`kill -9` in the middle of an extraction, and two writers on one cache."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from torture.setting import Run, Setting, contents, extract, extracting, num_committed, wait_until
from torture.trials import Trial, judged, resumed


def kills(setting: Setting, number: int) -> Iterator[Trial]:
    """At moments that are uniform over the whole run, from its start to its end."""
    for _ in range(number):
        out, delay = setting.fresh('kill'), setting.random.uniform(0, setting.seconds)
        with extracting(setting.folder, out) as run:
            time.sleep(delay)
            was_running = run.kill()
        kind = 'kill -9 at any moment' if was_running else 'kill -9 that came too late'
        yield resumed(kind, out, setting, what=f'killed after {delay:.3f} s with {num_committed(out)} shards')


def kills_while_publishing(setting: Setting, number: int) -> Iterator[Trial]:
    """In the few milliseconds around the last shard and the manifest, which a uniform moment hardly ever meets."""
    num_shards = len(_shard_groups(setting))
    for _ in range(number):
        out = setting.fresh('publish')
        with extracting(setting.folder, out) as run:
            wait_until(lambda out=out: num_committed(out) >= num_shards - 1, run)  # type: ignore[misc]
            time.sleep(setting.random.uniform(0, 0.1 * setting.seconds))
            was_running = run.kill()
        kind = 'kill -9 while publishing' if was_running else 'kill -9 that came too late'
        yield resumed(kind, out, setting, what=f'killed with {num_committed(out)} shards')


def _shard_groups(setting: Setting) -> list[str]:
    """The shard groups of the cache, by one file of each."""
    return [name for name in contents(setting.reference['mine']) if '/plain/p3/c/' in name]


def writers(setting: Setting, number: int) -> Iterator[Trial]:
    """The second of two writers is told of the first; one that was killed is in nobody's way."""
    for trial in range(number):
        out = setting.fresh('writers')
        with extracting(setting.folder, out, teacher='slow') as run:
            wait_until(lambda out=out: _holder(out).endswith('\n'), run)  # type: ignore[misc]
            time.sleep(setting.random.uniform(0, setting.seconds))
            yield _second_writer(setting, out, run, options=('--overwrite',) if trial % 2 else ())
            run.kill()
        if _holder(out):
            yield resumed('lock of a dead process', out, setting, what='after a killed writer')
        else:
            yield Trial('lock of a dead process', 'failed', 'the killed writer left no holder: nothing was tested')


def _second_writer(setting: Setting, out: Path, run: Run, *, options: Sequence[str]) -> Trial:
    code, line = extract(setting.folder, out, *options)
    if code != 1 or f'process {run.process.pid} on' not in line or 'is writing this cache' not in line:
        return Trial('two writers', 'failed', f'the second one ended with {code}: {line}')
    trial = judged('two writers', out, setting, what='while the first one was at work')
    return Trial('two writers', 'survived') if trial.end == 'lost' else Trial('two writers', 'failed', trial.note)


def _holder(out: Path) -> str:
    path = out / '.lock.holder'
    return path.read_text() if path.exists() else ''
