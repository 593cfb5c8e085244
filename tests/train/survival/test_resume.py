"""Runs that are stopped, killed and taken up again."""

import itertools
import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtpd_train.training.saving import Saver

EVERY_STEP = ('--set', 'save.every_minutes=1e-9')


@pytest.mark.slow
def test_kills_at_any_moment(
    stages: list[Path], assert_same_run: Callable[[Path], None], start: Any, tmp_path: Path
) -> None:
    """Building, reading, training, evaluating, saving, between stages: each process lives a little longer."""
    out, num_kills = tmp_path / 'run', 0
    options = ('--out', out, *EVERY_STEP)
    generator = random.Random(0)
    while True:
        program = start(*stages, *options, *(['--resume'] if (out / 'run.json').exists() else []))
        time.sleep(generator.uniform(0.2, 0.8) * 1.3**num_kills)
        program.kill()
        code = program.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, program.stderr
        num_kills += 1
    assert num_kills >= 3
    assert_same_run(out)


@pytest.mark.parametrize('save', [EVERY_STEP, pytest.param((), marks=pytest.mark.slow)], ids=['every step', 'epochs'])
def test_kill_9_in_mid_epoch(
    save: tuple[str, ...],
    stages: list[Path],
    assert_same_run: Callable[[Path], None],
    start: Any,
    wait_for: Any,
    position: Callable[[], tuple[int, int]],
    tmp_path: Path,
) -> None:
    out = tmp_path / 'run'
    program = start(*stages, '--out', out, *save)
    wait_for(lambda: position() > ((1, 6) if save else (0, 6)))
    program.kill()
    assert program.wait() == -signal.SIGKILL
    epoch, step = position()
    assert step % 6 or not save
    # As if it had died just after records of steps that will be done again, and while it wrote another.
    records = [{'kind': kind, 'stage': 1, 'step': step + 1, 'epoch': epoch + 1} for kind in ('train', 'evaluation')]
    with (out / 'metrics.jsonl').open('a') as file:
        file.write(''.join(json.dumps(one) + '\n' for one in records) + '{"kind": "tr')
    (out / 'stage1' / '.tmp--abc-progress.pth').write_bytes(b'half')
    # How often a state is saved may change under a run.
    program = start(*stages, '--out', out, '--resume')
    assert program.wait() == 0, program.stderr
    assert_same_run(out)


def test_a_kill_between_stages(
    stages: list[Path], assert_same_run: Callable[[Path], None], start: Any, wait_for: Any, tmp_path: Path
) -> None:
    """The student of stage 1 is there; its training state may be there still."""
    out = tmp_path / 'run'
    program = start(*stages, '--out', out)
    wait_for((out / 'stage1' / 'student.pth').exists)
    program.kill()
    assert program.wait() == -signal.SIGKILL
    (out / 'stage1' / 'progress.pth').write_bytes((out / 'stage1' / 'epoch_3.pth').read_bytes())
    program = start(*stages, '--out', out, '--resume')
    assert program.wait() == 0, program.stderr
    assert 'stage 1: finished before' in (program.folder / 'stdout').read_text()
    assert_same_run(out)


def test_a_kill_between_an_evaluation_and_the_end_of_its_epoch(
    stages: list[Path], assert_same_run: Callable[[Path], None], train: Any, tmp_path: Path
) -> None:
    """The evaluation is done again, and its record stands once."""

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    out = tmp_path / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, 'finish_epoch', die)
        with pytest.raises(AssertionError, match='Killed'):
            train(*stages, '--out', out, *EVERY_STEP)
    assert [json.loads(line)['kind'] for line in (out / 'metrics.jsonl').read_text().splitlines()][-1] == 'evaluation'
    train(*stages, '--out', out, '--resume')
    assert_same_run(out)


def test_finished_stages_are_skipped(
    stages: list[Path],
    train: Callable[..., Any],
    train_error: Callable[..., str],
    assert_same_run: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    """The run stops in stage 2, which cannot read an image, and goes on when the image is there again."""
    out = tmp_path / 'run'
    content = json.loads(stages[1].read_text())
    image = Path(content['data']['coco']) / 'train2017' / '000000000007.jpg'
    pixels = image.read_bytes()
    calls = itertools.count()

    def train_stage(stage: Any, **options: Any) -> None:
        from mtpd_train.training.loop import train_stage

        if next(calls) == 1:
            image.write_bytes(pixels[:-99])
        try:
            train_stage(stage, **options)
        finally:
            image.write_bytes(pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mtpd_train.run.train_stage', train_stage)
        assert '000000000007.jpg: not a complete image' in train_error(*stages, '--out', out)
    assert (out / 'stage1' / 'student.pth').exists()
    assert not (out / 'student.pth').exists()
    before = (out / 'stage1' / 'student.pth').stat().st_mtime_ns
    assert 'stage 1: finished before' in train(*stages, '--out', out, '--resume').output
    assert (out / 'stage1' / 'student.pth').stat().st_mtime_ns == before
    assert_same_run(out)


def test_a_finished_run_is_finished(stages: list[Path], whole: Path, train: Callable[..., Any]) -> None:
    metrics = (whole / 'metrics.jsonl').read_bytes()
    output = train(*stages, '--out', whole, '--resume').output
    assert 'stage 1: finished before' in output
    assert 'stage 2: finished before' in output
    assert (whole / 'metrics.jsonl').read_bytes() == metrics


@pytest.fixture
def _before_building(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails does so before the stages are built, which takes minutes where they are large."""
    monkeypatch.setattr('mtpd_train.run.build_stages', lambda *_, **__: pytest.fail('the stages were built'))


@pytest.mark.usefixtures('_before_building')
@pytest.mark.parametrize('options', [[], ['--dry-run']], ids=['run', 'dry run'])
def test_a_run_is_not_written_over(
    options: list[str], stages: list[Path], whole: Path, train_error: Callable[..., str], tmp_path: Path
) -> None:
    assert f'{whole}: already holds a run; add --resume to resume it' in train_error(*stages, '--out', whole, *options)
    (tmp_path / 'notes.txt').write_text('mine')
    assert 'not empty and does not hold a run' in train_error(*stages, '--out', tmp_path, '--resume', *options)
    assert [one.name for one in tmp_path.iterdir()] == ['notes.txt']


@pytest.mark.usefixtures('_before_building')
@pytest.mark.parametrize('options', [[], ['--dry-run']], ids=['run', 'dry run'])
def test_a_read_only_place(
    options: list[str],
    stages: list[Path],
    train_error: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr('os.access', lambda place, *_, **__: place != tmp_path)
    error = train_error(*stages, '--out', tmp_path / 'run', *options)
    assert f'{tmp_path / "run"}: no permission to write here; choose another --out' in error


@pytest.mark.usefixtures('_before_building')
def test_a_changed_configuration_is_refused(stages: list[Path], whole: Path, train_error: Callable[..., str]) -> None:
    line = train_error(*stages, '--out', whole, '--resume', '--set', 'optim.lr=0.5')
    assert 'stages.1.optim.lr was 0.002 and is 0.5' in line
    shorter = train_error(stages[0], '--out', whole, '--resume')
    assert f'the number of stages was {len(stages)} and is 1; give the same stage files' in shorter


@pytest.mark.parametrize('field', ['fingerprint', 'codec', 'provenance'])
def test_a_changed_cache_is_refused(
    field: str,
    stages: list[Path],
    whole: Path,
    train: Callable[..., Any],
    train_error: Callable[..., str],
    tmp_path: Path,
) -> None:
    """Another teacher at the same path; who made it with which versions does not matter."""
    out = tmp_path / 'run'
    shutil.copytree(whole, out)
    run = json.loads((out / 'run.json').read_bytes())
    ((path, description),) = run['caches'].items()
    if field == 'codec':
        description['codec'] = 'fp16'
    elif field == 'fingerprint':
        description['fingerprint']['teacher']['weights'] = 'other'
    else:
        description['provenance']['versions']['torch'] = '1.0'
    (out / 'run.json').write_text(json.dumps(run))
    if field == 'provenance':
        train(*stages, '--out', out, '--resume')
    else:
        assert f'caches.{path}.{field}' in train_error(*stages, '--out', out, '--resume')


def test_a_run_that_was_moved(
    stages: list[Path], whole: Path, train: Callable[..., Any], train_error: Callable[..., str], tmp_path: Path
) -> None:
    """With its data, cache and student's config, by links and copies: by their content it is the same run."""
    run, files = tmp_path / 'run', []
    shutil.copytree(whole, run)
    for number, path in enumerate(stages):
        stage = json.loads(path.read_text())
        student = tmp_path / f'student{number}.py'
        shutil.copy(stage['student'], student)
        for key, place in (('cache', stage.get('cache')), ('coco', stage['data']['coco'])):
            if place is not None and not (tmp_path / f'{key}{number}').exists():
                (tmp_path / f'{key}{number}').symlink_to(place)
        stage |= {'student': str(student), 'data': stage['data'] | {'coco': str(tmp_path / f'coco{number}')}}
        if stage.get('cache') is not None:
            stage['cache'] = str(tmp_path / f'cache{number}')
        files.append(tmp_path / f'stage{number}.yaml')
        files[-1].write_text(json.dumps(stage))
    result = train(*files, '--out', run, '--resume')
    assert 'stages.1.student was ' in result.stderr
    assert 'stages.1.data.coco was ' in result.stderr
    assert 'finished before' in result.output
    # The same path, and a network of the same weights that is trained otherwise.
    student.write_text(student.read_text().replace("'gamma': 2.0", "'gamma': 3.0"))
    line = train_error(*files, '--out', run, '--resume')
    assert f'stages.{len(files)}.student ({student}) was sha256' in line


def test_progress_that_is_damaged(
    stages: list[Path], whole: Path, train_error: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / 'stage1').mkdir()
    (tmp_path / 'run.json').write_bytes((whole / 'run.json').read_bytes())
    (tmp_path / 'stage1' / 'progress.pth').write_bytes(b'nothing')
    line = train_error(*stages, '--out', tmp_path, '--resume')
    assert 'progress.pth: cannot be resumed from' in line
    assert 'delete it to restart this stage' in line


def test_one_process_writes_a_run(
    stages: list[Path], start: Any, wait_for: Any, train_error: Any, tmp_path: Path
) -> None:
    first = start(*stages, '--out', tmp_path, '--set', 'optim.epochs=50')
    wait_for((tmp_path / 'run.json').exists)
    line = train_error(*stages, '--out', tmp_path, '--resume', '--set', 'optim.epochs=50')
    assert f'{tmp_path}: process {first.pid} on ' in line
    assert 'is writing this run; wait for it, or choose another --out' in line
    first.kill()
    first.wait()
    # The lock of a dead process is free.
    assert 'optim.epochs was 50' in train_error(*stages, '--out', tmp_path, '--resume')


def test_a_full_disk(stages: list[Path], start: Any, wait_for: Any, tmp_path: Path) -> None:
    """Files may grow to half of what the state takes: it cannot be saved again, and what was saved is intact."""
    out = tmp_path / 'run'
    file = out / 'stage1' / 'progress.pth'
    stopped = start(*stages, '--out', out, *EVERY_STEP)
    wait_for(file.exists)
    stopped.kill(signal.SIGTERM)
    assert stopped.wait() == 130
    before = file.read_bytes()
    full = start(*stages, '--out', out, '--resume', *EVERY_STEP, file_size_limit=len(before) // 2)
    assert full.wait() == 1
    assert full.last_line.startswith(f'Error: {file}: cannot be saved (File too large, ')
    advice = 'earlier saves are intact: free some space, then run the same command with --resume'
    assert full.last_line.endswith(advice)
    assert file.read_bytes() == before
    assert not list(out.rglob('.tmp-*'))
