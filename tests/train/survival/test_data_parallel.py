"""Several processes train one student: as one process would, and whatever happens to one happens to all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd_train.evaluation import evaluate_stage
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.stage import build_stages
from mtpd_train.student import load_student

Records = Callable[..., list[dict[str, Any]]]
# Each process leaves what it has trained.
DUMP = """
import os
from mtpd_train import run
train = run.train_stage
def train_stage(stage, **options):
    train(stage, **options)
    torch.save(stage.student.module.state_dict(), os.environ['DUMP'] + f'-{stage.number}-{options["world"].rank}.pth')
run.train_stage = train_stage
"""


def finished(programs: list[Any]) -> None:
    """Waits for all, which must succeed; only the first has spoken."""
    assert [one.wait() for one in programs] == [0, 0], programs[0].stderr + programs[1].stderr
    assert programs[1].stderr == ''
    assert (programs[1].folder / 'stdout').read_text() == ''


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """How far two states are apart, in units of how far training has moved them."""
    moved, apart = (
        torch.cat([(first[name] - second[name]).flatten().double() for name in first]).norm()
        for first, second in ((one, start), (one, other))
    )
    assert moved > 0
    return float(apart / moved)


@pytest.mark.parametrize(
    ('batch_size', 'accumulate'),
    [(8, 1), pytest.param(7, 1, marks=pytest.mark.slow), (3, 2)],
    ids=['even', 'one is idle', 'uneven, accumulated'],
)
def test_two_processes_train_as_one_does(
    batch_size: int,
    accumulate: int,
    uniform_set: Path,
    uniform_cache: Path,
    write_stage: Any,
    train: Any,
    start_two: Any,
    records: Records,
    tmp_path: Path,
) -> None:
    """Losses to 1e-5 and weights to 1e-3 of their movement, at equal objects in all images and fixed batch statistics.

    Eight images: with batches of 7 the second has one image, and process 1 nothing that counts.
    """
    stage = write_stage(
        tmp_path / 'stage.yaml',
        model={'backbone.norm_eval': True},
        cache=uniform_cache,
        distill=[{'loss': 'masked_mse', 'scale': 'none', 'adapter': 'always'}],
        data={'coco': uniform_set, 'val': None, 'batch_size': batch_size},
        optim={'type': 'sgd', 'lr': 2e-3, 'epochs': 4, 'grad_clip': 5.0, 'warmup_iters': 0, 'accumulate': accumulate},
        save={'keep': 4},
    )
    one, two = tmp_path / 'one', tmp_path / 'two'
    train(stage, '--out', one)
    finished(start_two(stage, '--out', two, environment={'DUMP': str(tmp_path / 'dump')}, code=DUMP))
    logs = [records(run, 'train') for run in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 4
    for single, parallel in zip(*logs, strict=True):
        assert parallel['losses'] == pytest.approx(single['losses'], rel=1e-5)
        assert parallel['grad_norm'] == pytest.approx(single['grad_norm'], rel=1e-3)
        assert (parallel['step'], parallel['lr']) == (single['step'], single['lr'])
    (built,) = build_stages(load_stages([stage]))
    states = [torch.load(run / 'student.pth', weights_only=True)['state_dict'] for run in (one, two)]
    assert distance(states[0], states[1], start=built.student.module.state_dict()) < 1e-3
    # Bit for bit the same in both processes.
    first, second = (torch.load(tmp_path / f'dump-1-{rank}.pth', weights_only=True) for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope='module')
def whole_of_two(tmp_path_factory: pytest.TempPathFactory, start_two: Any, stages: list[Path]) -> Path:
    """The run of two processes without interruption, with a moving average."""
    folder = tmp_path_factory.mktemp('two')
    finished(
        start_two(
            *stages, '--out', folder / 'run', '--set', 'optim.ema=0.9',
            environment={'DUMP': str(folder / 'dump')}, code=DUMP,
        )
    )  # fmt: skip
    return folder / 'run'


def student(run: Path, stage: int) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / f'stage{stage}' / 'student.pth', weights_only=True)['state_dict']
    return state


def test_all_processes_have_the_average_and_the_statistics_of_the_first(whole_of_two: Path) -> None:
    for stage in (1, 2):
        saved = student(whole_of_two, stage)
        for rank in range(2):
            own = torch.load(whole_of_two.parent / f'dump-{stage}-{rank}.pth', weights_only=True)
            assert all(torch.equal(value, own[name]) for name, value in saved.items())


def test_evaluation_is_divided(whole_of_two: Path, stages: list[Path], records: Records) -> None:
    built, _ = build_stages(load_stages(stages))
    load_student(built.student.module, whole_of_two / 'stage1' / 'student.pth', name='student')
    found = evaluate_stage(built, built.student, step=18, epoch=3)
    *_, last = records(whole_of_two, 'evaluation')
    assert last['metrics'] == pytest.approx(found.metrics, abs=1e-6)
    assert found.metrics['box/AR100'] > 0


def test_a_dry_run_plans_for_the_share_of_each(start_two: Any, stages: list[Path], tmp_path: Path) -> None:
    """Batches of 2 and of 4 images; a step of the second stage has two of these."""
    code = """
from mtpd_train import planning
add_gradient = planning.add_gradient
def seen(stage, samples, *arguments, **options):
    with open(os.environ['DUMP'] + os.environ['RANK'], 'a') as file:
        print(stage.number, len(samples), options['ends_step'], file=file)
    return add_gradient(stage, samples, *arguments, **options)
planning.add_gradient = seen
"""
    dump = {'DUMP': str(tmp_path / 'dump')}
    finished(start_two(*stages, '--out', tmp_path / 'run', '--dry-run', environment=dump, code=code))
    seen = [line.split() for rank in range(2) for line in (tmp_path / f'dump{rank}').read_text().splitlines()]
    first, second = ([one[1:] for one in seen if one[0] == number] for number in '12')
    assert first == [['1', 'True']] * 2 * 4
    # Three batches, two of 4 and one of 3 images, which may come anywhere; each process has two or one of each.
    assert [ends for _, ends in second] == ['False', 'True', 'True'] * 2
    assert sorted(number for number, _ in second) == ['1', *['2'] * 5]
    assert not (tmp_path / 'run').exists()


def test_a_signal_stops_both_and_they_go_on(
    whole_of_two: Path, start_two: Any, stages: list[Path], wait_for: Any, records: Records, tmp_path: Path
) -> None:
    """It reaches one of them only, and is meant for both."""
    out, options = tmp_path / 'run', ('--set', 'optim.ema=0.9')
    programs = start_two(*stages, '--out', out, *options)
    wait_for((out / 'stage1' / 'epoch_1.pth').exists)
    programs[1].kill(signal.SIGTERM)
    assert [one.wait() for one in programs] == [130, 130], programs[0].stderr + programs[1].stderr
    assert programs[0].last_line.startswith('stopped in epoch ')
    assert programs[1].stderr == ''
    finished(start_two(*stages, '--out', out, *options, '--resume'))
    for stage in (1, 2):
        found, wanted = student(out, stage), student(whole_of_two, stage)
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    logs = [
        [(one['kind'], one['stage'], one['step'], one.get('losses')) for one in records(run)]
        for run in (out, whole_of_two)
    ]
    assert logs[0] == logs[1]


def test_an_error_of_one_ends_both(start_two: Any, stages: list[Path], small_set: Path, tmp_path: Path) -> None:
    coco = shutil.copytree(small_set, tmp_path / 'coco')
    image = coco / 'train2017' / '000000000004.jpg'
    image.write_bytes(image.read_bytes()[:-99])
    programs = start_two(stages[1], '--out', tmp_path / 'run', '--set', f'data.coco={coco}')
    started = time.monotonic()
    assert [one.wait() for one in programs] == [1, 1]
    assert time.monotonic() - started < 60
    lines = {one.last_line for one in programs}
    assert any('000000000004.jpg: not a complete image' in line for line in lines)
    assert any('lost contact with another process' in line for line in lines)


def test_a_killed_process_ends_the_other(start_two: Any, stages: list[Path], wait_for: Any, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    first, second = start_two(*stages, '--out', out, '--set', 'optim.epochs=50')
    wait_for((out / 'stage1' / 'epoch_1.pth').exists)
    second.kill()
    started = time.monotonic()
    assert (first.wait(), second.wait()) == (1, -signal.SIGKILL)
    assert time.monotonic() - started < 30
    assert first.last_line.startswith('Error: process 0 of 2 lost contact with another process')


def test_a_diverged_training_is_told_once(start_two: Any, stages: list[Path], tmp_path: Path) -> None:
    """A loss that only process 1 has seen."""
    code = """
from mtpd_train.training import step
losses_of = step.step_losses
def step_losses(*arguments, **options):
    losses = losses_of(*arguments, **options)
    return losses | {'loss_bbox': losses['loss_bbox'] * float('nan' if os.environ['RANK'] == '1' else 1)}
step.step_losses = step_losses
"""
    programs = start_two(stages[1], '--out', tmp_path, code=code)
    assert [one.wait() for one in programs] == [1, 1]
    assert 'stage 1: loss_bbox, nan in step 1 on the images ' in programs[0].last_line
    assert programs[1].stderr == ''
    seen = [json.loads(line) for line in (tmp_path / 'stage1' / 'diverged.jsonl').read_text().splitlines()]
    assert [len(one['image_ids']) for one in seen] == [4, 4, 3]


def test_a_batch_has_an_image_for_each(start_two: Any, stages: list[Path], tmp_path: Path) -> None:
    programs = start_two(*stages, '--out', tmp_path, '--set', 'data.batch_size=1')
    assert [one.wait() for one in programs] == [1, 1]
    assert 'data.batch_size is 1, the global batch size of all 2 processes' in programs[0].last_line


@pytest.mark.slow
def test_torchrun(stages: list[Path], wait_for: Any, tmp_path: Path) -> None:
    """One process is killed, torchrun ends the others; SIGTERM saves once; and the run goes on."""
    out = tmp_path / 'run'
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '--no-python']
    program = [sys.executable, '-c', 'from mtpd_train.cli import main; main()', str(stages[1]), '--out', str(out)]

    def run(*options: str) -> subprocess.Popen[str]:
        environment = os.environ | {'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
        return subprocess.Popen(
            [*torchrun, *program, *options], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    long = ('--set', 'optim.epochs=300')
    first = run(*long)
    wait_for((out / 'stage1' / 'progress.pth').exists)
    holder = int((out / '.lock.holder').read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    started = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert first.returncode not in (0, None)
    assert time.monotonic() - started < 45
    second = run(*long, '--resume')
    before = torch.load(out / 'stage1' / 'progress.pth', weights_only=True)['step']
    wait_for(lambda: torch.load(out / 'stage1' / 'progress.pth', weights_only=True)['step'] > before)
    second.send_signal(signal.SIGTERM)
    _, errors = second.communicate(timeout=60)
    assert second.returncode != 0
    said = [line for line in errors.splitlines() if line.startswith('stopped in epoch ')]
    assert len(said) == 1, errors
    step = torch.load(out / 'stage1' / 'progress.pth', weights_only=True)['step']
    assert f', step {step}; everything is saved' in said[0]
