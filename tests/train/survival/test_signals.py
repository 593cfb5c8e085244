"""Runs that are asked to stop, and go on."""

import os
import pty
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.detectors.results import coco_results
from mtpd_train.training.step import add_gradient


def is_group(number: int) -> bool:
    """Whether any of its processes is there."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_saves_the_step_and_says_how_to_go_on(
    stages: list[Path],
    assert_same_run: Callable[[Path], None],
    start: Any,
    wait_for: Any,
    position: Callable[[], tuple[int, int]],
    tmp_path: Path,
) -> None:
    """In the second epoch; twice at once, as launchers do."""
    out = tmp_path / 'run'
    program = start(*stages, '--out', out)
    wait_for(lambda: position() == (1, 6))
    program.kill(signal.SIGTERM)
    program.kill(signal.SIGTERM)
    assert program.wait() == 130, program.stderr
    epoch, step = position()
    assert (epoch, step) > (1, 6)
    assert program.last_line == (
        f'stopped in epoch {epoch + 1} of stage 1, step {step}; everything is saved; '
        'run the same command with --resume to continue'
    )
    program = start(*stages, '--out', out, '--resume')
    assert program.wait() == 0, program.stderr
    assert_same_run(out)


def test_a_signal_in_an_evaluation(
    stages: list[Path], assert_same_run: Callable[[Path], None], train: Any, train_error: Any, tmp_path: Path
) -> None:
    """It breaks off, and a resumed run begins with it."""
    out = tmp_path / 'run'
    with pytest.MonkeyPatch.context() as patch:

        def pressed(*arguments: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return coco_results(*arguments, **options)

        patch.setattr('mtpd_train.evaluation.coco_results', pressed)
        patch.setattr('mtpd_train.run.try_predictions', lambda *_: None)
        assert 'stopped in epoch 1 of stage 1, step 6' in train_error(*stages, '--out', out, code=130)
    assert 'evaluation' not in (out / 'metrics.jsonl').read_text()
    train(*stages, '--out', out, '--resume')
    assert_same_run(out)


def test_steps_are_saved_whole(stages: list[Path], train: Any, train_error: Any, whole: Path, tmp_path: Path) -> None:
    """Stage 2 makes a step of two batches: a signal in the first of them waits for the second."""
    out = tmp_path / 'run'
    shutil.copytree(whole, out)
    shutil.rmtree(out / 'stage2')
    calls = []

    def pressed(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return add_gradient(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mtpd_train.training.loop.add_gradient', pressed)
        assert 'stage 2, step 1;' in train_error(*stages, '--out', out, '--resume', code=130)
    assert len(calls) == 2


@pytest.mark.parametrize('number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_all_processes(
    number: signal.Signals, stages: list[Path], start: Any, wait_for: Any, tmp_path: Path
) -> None:
    """As a terminal or a scheduler sends it: those that read images work on until the run has saved, and then end."""
    program = start(stages[0], '--out', tmp_path, '--set', 'data.workers=2', '--set', 'optim.epochs=50')
    wait_for(lambda: (tmp_path / 'stage1' / 'progress.pth').exists())
    for _ in range(2):
        os.killpg(program.pid, number)
    assert program.wait() == 130, program.stderr
    assert 'Traceback' not in program.stderr
    assert program.last_line.startswith('stopped in epoch ')
    wait_for(lambda: not is_group(program.pid))


def test_a_terminal_that_is_closed(stages: list[Path], start: Any, wait_for: Any, tmp_path: Path) -> None:
    """Or a connection that is lost: what the run still says goes nowhere, and it saves."""
    terminal, end = pty.openpty()
    name = os.ttyname(end)
    code = f"""
import fcntl, termios
fcntl.ioctl(os.open({name!r}, os.O_RDWR), termios.TIOCSCTTY, 0)
for number in (0, 1, 2):
    os.dup2(os.open({name!r}, os.O_RDWR), number)
"""
    program = start(stages[0], '--out', tmp_path, '--set', 'data.workers=1', '--set', 'optim.epochs=50', code=code)
    progress = tmp_path / 'stage1' / 'progress.pth'
    wait_for(progress.exists)
    before = progress.stat().st_mtime_ns
    os.close(end)
    os.close(terminal)
    assert program.wait() == 130
    assert progress.stat().st_mtime_ns > before


def test_a_signal_while_networks_are_built(stages: list[Path], start: Any, tmp_path: Path) -> None:
    """There is nothing to save yet."""
    code = """
import mtpd_train.run, signal
mtpd_train.run.build_stages = lambda *_, **__: signal.raise_signal(signal.SIGTERM)
"""
    program = start(*stages, '--out', tmp_path / 'run', code=code)
    assert program.wait() == 130, program.stderr
    assert program.stderr == 'Error: interrupted immediately; earlier saves are kept\n'


def test_a_worker_that_is_ended_from_outside(stages: list[Path], start: Any, wait_for: Any, tmp_path: Path) -> None:
    """As the kernel does when memory is short: nothing of the broken step is saved, and the run can go on."""
    program = start(stages[0], '--out', tmp_path, '--set', 'data.workers=1', '--set', 'optim.epochs=50')
    progress = tmp_path / 'stage1' / 'progress.pth'
    children = Path(f'/proc/{program.pid}/task/{program.pid}/children')
    wait_for(lambda: progress.exists() and children.read_text())
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    assert program.wait() == 1
    assert program.last_line.startswith('Error: stage 1: a process that reads images was killed')
    assert program.last_line.endswith('earlier saves are intact: run the same command with --resume')
    assert 'Traceback' not in program.stderr
    torch.load(progress, weights_only=True)
