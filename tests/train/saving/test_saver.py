"""When a stage is saved, and what never is."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtpd_train.optimization import Optimization
from mtpd_train.processes import ALONE, World
from mtpd_train.records.divergence import DivergedError
from mtpd_train.records.meter import Meter
from mtpd_train.stage import Stage
from mtpd_train.training.saving import BEST_FILE, Position, Saver, epoch_file

Start = Callable[..., tuple[Saver, Stage]]


@pytest.fixture
def start(build_stage: Callable[..., Stage], tmp_path: Path) -> Start:
    """`start(every_minutes, world)` is the saver of a stage, which saves into `tmp_path`; and the stage."""

    def make(every_minutes: float | None = 15.0, world: World = ALONE) -> tuple[Saver, Stage]:
        stage = build_stage(save={'every_minutes': every_minutes})
        cpu, networks = torch.device('cpu'), (stage.student, stage.distiller)
        steps = stage.steps_per_epoch
        optimization = Optimization(*networks, stage.settings.optim, steps_per_epoch=steps, device=cpu)
        meter = Meter(stage=stage.number, device=cpu)
        return Saver(stage, optimization, meter, progress_file=tmp_path / 'progress.pth', world=world), stage

    return make


def test_minutes_count_from_the_last_saving(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = SimpleNamespace(now=1000.0)
    monkeypatch.setattr('mtpd_train.training.saving.time', SimpleNamespace(monotonic=lambda: clock.now))
    (saver, _), (never, _), (other, _) = start(), start(None), start(world=World(rank=1, size=2))
    for step in (1, 2):
        clock.now += 15 * 60 - 1
        assert [one.is_due for one in (saver, never, other)] == [False, False, False]
        clock.now += 1
        # The first process writes, and tells the others.
        assert [one.is_due for one in (saver, never, other)] == [True, False, False]
        saver.save(Position(0, step))
        assert torch.load(tmp_path / 'progress.pth', weights_only=True)['step'] == step


def test_weights_that_are_not_finite_are_kept_nowhere(start: Start, tmp_path: Path) -> None:
    saver, stage = start()
    with torch.no_grad():
        next(stage.student.module.parameters()).flatten()[0] = torch.nan
    error = r'stage 1: .* of the student is not finite after step 3'
    with pytest.raises(DivergedError, match=error):
        saver.save(Position(0, 3))
    with pytest.raises(DivergedError, match=error):
        saver.finish_epoch(Position(1, 3), {'box/AP': 0.5})
    assert not list(tmp_path.glob('*.pth'))


def test_a_stage_without_a_state_starts_anew(start: Start, tmp_path: Path) -> None:
    """What another training, of which no state is left, has kept must not pass for the best of this one."""
    saver, _ = start()
    for path in (epoch_file(tmp_path, 1), tmp_path / BEST_FILE):
        path.write_bytes(b'')
    assert saver.restore(tmp_path / 'metrics.jsonl') == Position()
    assert not list(tmp_path.glob('*.pth'))
