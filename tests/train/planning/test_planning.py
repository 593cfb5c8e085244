"""What a dry run tells is what the run then takes."""

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from mtpd_train import planning
from mtpd_train.data.sampling import Request, share_of
from mtpd_train.optimization import build_optimizer
from mtpd_train.planning import Trial, disk_bytes, plan_lines, plan_stage, run_trial
from mtpd_train.processes import World
from mtpd_train.stage import Stage
from mtpd_train.teachers import cached_teacher
from mtpd_train.teachers.cached_teacher import CachedTeacher
from mtpd_train.training.step import loaded

CPU = torch.device('cpu')
Build = Callable[..., Stage]
DISTILL = [{'loss': 'masked_mse', 'levels': ['p3', 'p4']}]


def test_steps_and_checkpoint_are_those_of_the_run(
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    build_stage: Build,
    records: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    changes: dict[str, Any] = {'data': {'batch_size': 5}, 'optim': {'epochs': 2, 'accumulate': 2}}
    plan = plan_stage(build_stage(**changes))
    output = train(write_stage(tmp_path / 'stage.yaml', **changes), '--out', tmp_path / 'run').output
    assert '\n'.join(plan_lines([plan])) in output
    assert records(tmp_path / 'run', 'train')[-1]['step'] == plan.num_steps
    assert (tmp_path / 'run' / 'student.pth').stat().st_size == pytest.approx(plan.student_bytes, rel=0.1)
    left = sum(path.stat().st_size for path in (tmp_path / 'run').rglob('*.pth'))
    assert left == pytest.approx(plan.left_bytes + plan.student_bytes, rel=0.1)
    # A state is written before the one that it replaces goes.
    assert disk_bytes([plan]) == plan.left_bytes + plan.student_bytes + 2 * plan.progress_bytes


def test_bytes_read_are_those_of_the_views_and_levels(build_stage: Build, caches: dict[int, Path]) -> None:
    def read(flip: float, levels: list[str]) -> int:
        distill = [{'loss': 'masked_mse', 'levels': levels}]
        return plan_stage(build_stage(cache=caches[16], distill=distill, data={'flip': flip})).cache_bytes

    stage = build_stage(cache=caches[16], distill=DISTILL, data={'flip': 0.0})
    plain = [path for path in caches[16].glob('*/plain/p3*/c/**/*') if path.is_file()]
    share = len(stage.train_set.sizes(with_objects=True)) / len(stage.train_set.sizes())
    assert read(0, ['p3']) == pytest.approx(share * sum(path.stat().st_size for path in plain), abs=1)
    assert read(0.25, ['p3']) == pytest.approx(0.75 * read(0, ['p3']) + 0.25 * read(1, ['p3']), abs=1)
    assert read(0, ['p3', 'p4']) == pytest.approx(read(0, ['p3']) + read(0, ['p4']), abs=1)
    assert plan_stage(build_stage(cache=caches[16], distill=[])).cache_bytes == 0
    assert plan_stage(build_stage()).cache_bytes == 0


def test_buffers_are_those_of_the_stream(
    build_stage: Build, caches: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Watched(cached_teacher.Buffer):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self.codes.nbytes)

    monkeypatch.setattr(cached_teacher, 'Buffer', Watched)
    stage = build_stage(cache=caches[16], distill=DISTILL, data={'workers': 0})
    assert isinstance(stage.source, CachedTeacher)
    batches = stage.epoch_batches(0)
    next(stage.source.read_ahead(batches, levels=['p3', 'p4'], device=CPU))
    assert plan_stage(stage).host_bytes == sum(made)
    # Five images for two processes: three for the first, and in a plan as many for each.
    del made[:]
    stage = build_stage(cache=caches[16], distill=DISTILL, data={'workers': 0, 'batch_size': 5})
    assert isinstance(stage.source, CachedTeacher)
    shares = [share_of(batch, rank=0, size=2).requests for batch in stage.epoch_batches(0)]
    next(stage.source.read_ahead(shares, levels=['p3', 'p4'], device=CPU))
    assert plan_stage(stage, World(size=2, local_size=2)).host_bytes == 2 * sum(made)
    assert plan_stage(stage, World(size=2)).host_bytes == sum(made)


def test_images_under_way_are_those_of_the_workers(build_stage: Build, caches: dict[int, Path]) -> None:
    without = build_stage(cache=caches[16], distill=DISTILL, data={'workers': 0})
    with_workers = build_stage(cache=caches[16], distill=DISTILL, data={'workers': 3})
    # Two batches of eight images under way in each of three processes; the largest is 128 x 128 px.
    assert plan_stage(with_workers).host_bytes == plan_stage(without).host_bytes + 3 * 2 * 8 * 3 * 128 * 128


@pytest.mark.parametrize(('kind', 'momentum'), [('adamw', 0.9), ('sgd', 0.9), ('sgd', 0.0)])
def test_the_state_has_the_optimizers_moments(kind: str, momentum: float, build_stage: Build) -> None:
    stage = build_stage(optim={'type': kind, 'momentum': momentum})
    parameters = [one for one in stage.student.module.parameters() if one.requires_grad]
    for one in parameters:
        one.grad = torch.ones_like(one)
    optimizer: Optimizer = build_optimizer(stage.student.module, nn.Module(), stage.settings.optim)
    optimizer.step()
    buffer = io.BytesIO()
    torch.save([stage.student.module.state_dict(), optimizer.state_dict()], buffer)
    assert plan_stage(stage).progress_bytes == pytest.approx(buffer.tell(), rel=0.1)


@pytest.mark.parametrize(
    ('data', 'accumulate', 'num_steps'), [({}, 1, 2), ({}, 2, 1), ({'batch_size': 24}, 1, 1), ({'batch_size': 4}, 1, 2)]
)
def test_a_trial(data: dict[str, Any], accumulate: int, num_steps: int, build_stage: Build) -> None:
    """Also where an epoch has no more than one step."""
    stage = build_stage(data=data, optim={'accumulate': accumulate, 'lr': 1e6})
    trial = run_trial(stage, CPU, num_steps=2)
    assert trial.num_steps == num_steps
    assert 0 < trial.seconds_per_step < 60
    assert trial.gpu_bytes is None
    parameters = itertools.chain(stage.student.module.parameters(), stage.distiller.parameters())
    assert not any(one.isnan().any() for one in parameters)


def test_a_trial_reads_images_ahead_as_the_run_does(build_stage: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What processes have read during the first step is used up before the clock starts, and they go on to the end."""
    given, used = [], []

    def watched(stage: Stage, batches: list[list[Request]]) -> Iterator[Any]:
        given.append(len(batches))
        for one in loaded(stage, batches):
            used.append(one)
            yield one

    monkeypatch.setattr('mtpd_train.planning.loaded', watched)
    trial = run_trial(build_stage(data={'batch_size': 2, 'workers': 2}), CPU, num_steps=3)
    # Two batches of each process to warm up, then two of each on the clock.
    assert (given, len(used), trial.num_steps) == ([12], 8, 4)


def test_a_dry_run_tells_the_plan(
    train: Callable[..., Any], write_stage: Callable[..., Path], caches: dict[int, Path], tmp_path: Path
) -> None:
    files = [
        write_stage(tmp_path / 'one.yaml', optim={'epochs': 100}),
        write_stage(tmp_path / 'two.yaml', cache=caches[16], distill=DISTILL),
    ]
    arguments = [*files, '--out', tmp_path / 'run', '--dry-run']
    lines = train(*arguments).output.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith('stage  images')]
    assert lines[at].split()[-3:] == ['s/step', 'time', 'GPU']
    assert lines[at + 1].split()[:4] == ['1', '23', '100', '300']
    assert lines[at + 2].split()[:4] == ['2', '23', '1', '3']
    assert lines[at + 2].split()[4] != '-'
    assert [line.split()[0] for line in lines[at + 3 :]] == ['time', 'disk', 'memory', 'Dry']
    assert 's/step' not in train(*arguments, '--trial-steps', 0).output
    assert not (tmp_path / 'run').exists()


def test_no_room(
    train_error: Callable[..., str],
    write_stage: Callable[..., Path],
    build_stage: Build,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Of disk or memory, in a dry run and before a real one."""
    stage = write_stage(tmp_path / 'stage.yaml')
    needed = disk_bytes([plan_stage(build_stage())])
    assert needed > 4 * 240_000 * 4
    options = ['--out', tmp_path / 'run', '--trial-steps', 0]
    with monkeypatch.context() as patch:
        patch.setattr(planning, 'free_bytes', lambda _: planning.MARGIN_BYTES + needed - 1)
        for arguments in ([*options, '--dry-run'], options):
            line = train_error(stage, *arguments)
            assert f'{tmp_path / "run"}: its checkpoints need 7' in line
            assert not (tmp_path / 'run').exists()
    monkeypatch.setattr(planning, '_ram_bytes', lambda: 10)
    crowded = write_stage(tmp_path / 'crowded.yaml', data={'workers': 2})
    assert 'stage 1: prefetched batches need' in train_error(crowded, *options)


@pytest.mark.parametrize(('seconds', 'shown'), [(0.2, '60.0 s'), (2.0, '10.0 min'), (60.0, '5.0 h'), (65.0, '5.4 h')])
def test_hours_are_of_all_epochs(seconds: float, shown: str, build_stage: Build) -> None:
    plan = plan_stage(build_stage(optim={'epochs': 100}))
    assert plan.num_steps == 300
    _, row, total = plan_lines([plan], [Trial(3, seconds, None)])
    assert shown in row
    assert total.startswith(f'time     {shown} in total')


def test_the_state_has_the_adapters_and_their_moments(build_stage: Build, caches: dict[int, Path]) -> None:
    taught = build_stage(cache=caches[16], distill=DISTILL)
    adapters = sum(one.numel() * one.element_size() for one in taught.distiller.parameters())
    assert adapters > 0
    assert plan_stage(taught).progress_bytes == plan_stage(build_stage()).progress_bytes + 3 * adapters


def test_the_state_has_the_moving_average(build_stage: Build) -> None:
    without, averaged = (plan_stage(build_stage(optim={'ema': ema})) for ema in (None, 0.9))
    assert averaged.progress_bytes == without.progress_bytes + without.student_bytes
