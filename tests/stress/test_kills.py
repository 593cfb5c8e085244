"""`kill -9` during an extraction, and two writers on one cache: the same command again gives the undisturbed cache."""

import shutil
import signal
import time

import pytest

from mtpd.cache.format.tensor_files import BASIS_FILE
from stress.damages import contents
from stress.extraction import Setting, ended, num_committed, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning'),
]


def test_at_any_moment(setting: Setting, rounds: int) -> None:
    for _ in range(rounds):
        out, delay = setting.extraction.fresh(), setting.random.uniform(0, setting.seconds)
        with setting.extraction.extracting(out) as run:
            time.sleep(delay)
            in_time = run.kill()
        what = f'killed after {delay:.3f} s with {num_committed(out)} shards' + ('' if in_time else ', too late')
        print(what)
        setting.require_resumable(out, what)
        shutil.rmtree(out)


def test_between_files_of_a_group(setting: Setting, rounds: int) -> None:
    """As soon as one file of a shard group, of any array, exists and the next ones do not."""
    for _ in range(rounds):
        out = setting.extraction.fresh()
        file = setting.random.choice([file for names in setting.groups.values() for file in names])
        with setting.extraction.extracting(out) as run:
            wait_until((out / file).exists, run)
            run.kill()
        numbers = [(sum((out / name).exists() for name in names), len(names)) for names in setting.groups.values()]
        what = f'killed after {file} with {num_committed(out)} shards'
        print(what, ', between files' if any(0 < found < num for found, num in numbers) else ', between groups')
        setting.require_resumable(out, what)
        shutil.rmtree(out)


def test_while_publishing(setting: Setting, rounds: int) -> None:
    """In the few milliseconds around the last shard and the manifest, which a uniform moment hardly ever meets."""
    for _ in range(rounds):
        out = setting.extraction.fresh()
        with setting.extraction.extracting(out) as run:
            wait_until(lambda out=out: num_committed(out) >= len(setting.groups) - 1, run)  # type: ignore[misc]
            time.sleep(setting.random.uniform(0, 0.1 * setting.seconds))
            in_time = run.kill()
        what = f'killed with {num_committed(out)} shards' + ('' if in_time else ', too late')
        print(what)
        setting.require_resumable(out, what)
        shutil.rmtree(out)


@pytest.mark.parametrize('options', [(), ('--overwrite',)], ids=['resume', 'overwrite'])
def test_a_second_writer(setting: Setting, rounds: int, options: tuple[str, ...]) -> None:
    """It names the first one; one that was killed does not block."""
    for _ in range(rounds):
        out, least = setting.extraction.fresh(), setting.random.randrange(len(setting.groups) // 2)
        with setting.extraction.extracting(out) as run:
            # Earlier it may hold the gate, for which the second one would wait.
            wait_until((out / BASIS_FILE).exists, run)
            wait_until(lambda out=out, least=least: num_committed(out) >= least, run)  # type: ignore[misc]
            run.signal(signal.SIGSTOP)
            with setting.extraction.extracting(out, *options) as second:
                code, line = ended(second)
            assert code == 1, line
            assert f'process {run.process.pid} on' in line
            assert 'is writing this cache' in line
            assert not setting.judge(out, 'while the first one was in the middle').is_right
            run.kill()
        assert (out / '.lock.holder').read_text(), 'the killed writer left no holder: nothing was tested'
        setting.require_resumable(out, 'after a killed writer')
        shutil.rmtree(out)


def test_a_merge(setting: Setting, rounds: int) -> None:
    """Killed at any moment and called again, it gives the undisturbed cache and leaves the parts as they are."""
    parts = [setting.extraction.fresh() for _ in range(2)]
    for index, part in enumerate(parts, start=1):
        code, line = setting.extraction.extract(part, '--part', f'{index}/2')
        assert code == 0, line
    before = [contents(part) for part in parts]
    start = time.monotonic()
    with setting.extraction.merging(parts, setting.extraction.fresh()) as run:
        code, line = ended(run)
    assert code == 0, line
    seconds = time.monotonic() - start
    for _ in range(rounds):
        out, delay = setting.extraction.fresh(), setting.random.uniform(0, seconds)
        with setting.extraction.merging(parts, out) as run:
            time.sleep(delay)
            in_time = run.kill()
        what = f'killed after {delay:.3f} s' + ('' if in_time else ', too late')
        print(what)
        if in_time:
            is_finished = (out / 'manifest.json').exists()
            with setting.extraction.merging(parts, out) as run:
                code, line = ended(run)
            assert code == 0 or (is_finished and 'holds a finished cache' in line), f'{what}: ended with {code}: {line}'
        assert setting.judge(out, what).is_right, what
        # The journals of a merge that was killed while it tidied up may still be there.
        assert setting.files.items() <= contents(out).items(), f'{what}: other files than in the undisturbed cache'
        shutil.rmtree(out)
    assert [contents(part) for part in parts] == before
