"""Runs that are stopped, killed and taken up again."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

EPOCHS = 3
KILLED = """
import os, signal, sys
from mtpd_train import loop
from mtpd_train.cli import main

step_of, calls = loop.add_gradient, []

def killed(*arguments, **options):
    calls.append(1)
    if len(calls) == 5:  # three batches an epoch: in the middle of the second
        os.kill(os.getpid(), signal.SIGKILL)
    return step_of(*arguments, **options)

loop.add_gradient = killed
sys.argv[0] = 'mtpd-train'
main()
"""


@pytest.fixture(scope='module')
def stages(
    tmp_path_factory: pytest.TempPathFactory, write_stage: Callable[..., Path], caches: dict[int, Path]
) -> list[Path]:
    """Two stages: three epochs of batch statistics, MGD's random masks, decay and AdamW, then one more."""
    folder = tmp_path_factory.mktemp('stages')
    first = write_stage(
        folder / 'one.yaml',
        cache=caches[16],
        distill=[{'loss': 'mgd', 'decay': {'kind': 'cosine'}}, {'loss': 'masked_mse', 'levels': ['p3']}],
        optim={'epochs': EPOCHS},
    )
    return [first, write_stage(folder / 'two.yaml', data={'val': None})]


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Any], stages: list[Path]) -> Path:
    """The run without interruption."""
    out = tmp_path_factory.mktemp('whole') / 'run'
    train(*stages, '--out', out)
    return out


def weights(run: Path, stage: int) -> dict[str, torch.Tensor]:
    state = torch.load(run / f'stage{stage}' / 'student.pth', weights_only=True)['state_dict']
    assert isinstance(state, dict)
    return state


def assert_same_run(run: Path, whole: Path) -> None:
    """Bit for bit the same students, and the same records but for what the clock says."""
    for stage in (1, 2):
        found, wanted = weights(run, stage), weights(whole, stage)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
    logs = []
    for folder in (run, whole):
        lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
        for line in lines:
            for key in ('images_per_second', 'data_wait', 'peak_memory', 'seconds'):
                line.pop(key, None)
        logs.append(lines)
    assert logs[0] == logs[1]


def test_kill_9_and_resume(stages: list[Path], whole: Path, train: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / 'run'
    command = [sys.executable, '-c', KILLED, *map(str, stages), '--out', str(out)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert sorted(path.name for path in out.iterdir()) == ['metrics.jsonl', 'run.json', 'stage1']
    assert [path.name for path in (out / 'stage1').iterdir()] == ['progress.pth']
    # As if it had died just after a record of the epoch that will be done again, and while it wrote another.
    with (out / 'metrics.jsonl').open('a') as file:
        file.write(json.dumps({'kind': 'train', 'stage': 1, 'step': 5, 'epoch': 2, 'losses': {}}) + '\n{"kind": "tr')
    result = train(*stages, '--out', out, '--resume')
    assert_same_run(out, whole)
    assert not list(out.rglob('progress.pth'))
    assert 'finished before' not in result.output


def test_finished_stages_are_skipped(
    stages: list[Path], whole: Path, train: Callable[..., Any], train_error: Callable[..., str], tmp_path: Path
) -> None:
    """The run stops in stage 2, which cannot read an image, and goes on when the image is there again."""
    out = tmp_path / 'run'
    content = json.loads(stages[1].read_text())
    image = Path(content['data']['coco']) / 'train2017' / '000000000007.jpg'
    pixels = image.read_bytes()
    calls = itertools.count()

    def train_stage(*arguments: Any) -> None:
        from mtpd_train.loop import train_stage

        if next(calls) == 1:
            image.write_bytes(pixels[:-99])
        try:
            train_stage(*arguments)
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
    assert_same_run(out, whole)


def test_a_finished_run_is_finished(stages: list[Path], whole: Path, train: Callable[..., Any]) -> None:
    metrics = (whole / 'metrics.jsonl').read_bytes()
    output = train(*stages, '--out', whole, '--resume').output
    assert 'stage 1: finished before' in output
    assert 'stage 2: finished before' in output
    assert (whole / 'metrics.jsonl').read_bytes() == metrics


def test_a_run_is_not_written_over(
    stages: list[Path], whole: Path, train_error: Callable[..., str], tmp_path: Path
) -> None:
    assert f'{whole}: already holds a run; add --resume to go on' in train_error(*stages, '--out', whole)
    (tmp_path / 'notes.txt').write_text('mine')
    assert 'not empty and holds no run' in train_error(*stages, '--out', tmp_path, '--resume')


def test_a_changed_configuration_is_refused(stages: list[Path], whole: Path, train_error: Callable[..., str]) -> None:
    line = train_error(*stages, '--out', whole, '--resume', '--set', 'optim.lr=0.5')
    assert 'stages.1.optim.lr was 0.002 and is 0.5' in line
    assert 'stages.2 was' in train_error(stages[0], '--out', whole, '--resume')


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


def test_progress_that_is_damaged(
    stages: list[Path], whole: Path, train_error: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / 'stage1').mkdir()
    (tmp_path / 'run.json').write_bytes((whole / 'run.json').read_bytes())
    (tmp_path / 'stage1' / 'progress.pth').write_bytes(b'nothing')
    line = train_error(*stages, '--out', tmp_path, '--resume')
    assert 'progress.pth: cannot be resumed from' in line
    assert 'delete it to start this stage anew' in line


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_at_once_and_says_how_to_go_on(
    number: signal.Signals,
    stages: list[Path],
    whole: Path,
    train: Callable[..., Any],
    train_error: Callable[..., str],
    tmp_path: Path,
) -> None:
    out = tmp_path / 'run'
    done = threading.Event()

    def press() -> None:
        """Ctrl-C once the first epoch is saved."""
        while not (out / 'stage1' / 'progress.pth').exists():
            if done.wait(0.01):
                return
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        line = train_error(*stages, '--out', out, code=130)
    finally:
        done.set()
        thread.join()
    assert line.startswith('stopped in epoch ')
    assert 'run the same command with --resume to go on' in line
    assert signal.getsignal(number) is not None
    train(*stages, '--out', out, '--resume')
    assert_same_run(out, whole)


@pytest.mark.slow
def test_ctrl_c_reaches_workers_too(stages: list[Path], tmp_path: Path) -> None:
    """A terminal sends it to the whole group of processes; the workers must not answer with tracebacks."""
    command = [sys.executable, '-c', 'from mtpd_train.cli import main; main()', str(stages[0]), '--out', str(tmp_path)]
    command += ['--set', 'data.workers=1', '--set', 'optim.epochs=50']
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / 'stage1' / 'progress.pth').exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert 'Traceback' not in error
    assert error.splitlines()[-1].startswith('stopped in epoch ')
