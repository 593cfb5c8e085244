"""Trainings that go wrong stop, name the batch that did it, and leave something to go back to."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd_train.records.divergence import EXPLODED, DivergedError, SeenBatch, describe, merged, require_sound
from mtpd_train.records.meter import Meter
from mtpd_train.training.step import step_losses

CPU = torch.device('cpu')


def batches(*totals: float) -> list[SeenBatch]:
    """Batches of two images, with two losses that sum up to these."""
    return [
        SeenBatch(number, (10 * number, 10 * number + 1), {'loss_cls': 0.75 * total, 'loss_bbox': 0.25 * total})
        for number, total in enumerate(totals, start=1)
    ]


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_the_first_batch_that_is_not_finite_is_blamed(value: float) -> None:
    seen = batches(1.0, 2.0, math.nan, math.inf)
    seen[2] = SeenBatch(3, (30, 31), {'loss_cls': 1.0, 'loss_bbox': value})
    with pytest.raises(DivergedError, match=rf'stage 2: loss_bbox, {value} in step 3 on the images 30, 31$'):
        require_sound(seen, first_total=1.0, stage=2)


@pytest.mark.parametrize(('first', 'limit'), [(0.1, EXPLODED), (1.0, EXPLODED), (7.0, 7 * EXPLODED)])
def test_what_has_exploded(first: float, limit: float) -> None:
    """The mean counts: one batch may be an outlier."""
    require_sound(batches(limit, limit), first_total=first, stage=1)
    require_sound(batches(1.9 * limit, 0.1), first_total=first, stage=1)
    with pytest.raises(DivergedError, match=r'has exploded, from .*; the largest term is loss_cls, .* in step 2'):
        require_sound(batches(0.8 * limit, 1.3 * limit), first_total=first, stage=1)


def test_a_loss_beyond_all_measure_at_the_start() -> None:
    require_sound(batches(1e5), first_total=1e5, stage=1)
    with pytest.raises(
        DivergedError, match=r'the loss is 3\.7e\+17 at its start.*loss_cls, .* in step 1 on the images 10'
    ):
        require_sound(batches(3.7e17), first_total=3.7e17, stage=1)


def test_many_images_are_cut_short() -> None:
    with pytest.raises(DivergedError, match=r'on the images 0, 1, .*, 15, \.\.\.$'):
        require_sound([SeenBatch(1, tuple(range(99)), {'loss': math.inf})], first_total=1.0, stage=1)


def test_the_meter_compares_with_the_first_batch_of_the_stage_even_when_resumed() -> None:
    meter, resumed = Meter(stage=1, device=CPU), Meter(stage=1, device=CPU)
    meter.add({'loss': torch.tensor(50.0)}, step=1, image_ids=[1])
    meter.look()
    resumed.load_state_dict(meter.state_dict())
    for one in (meter, resumed):
        one.add({'loss': torch.tensor(4000.0)}, step=2, image_ids=[2])
        one.look()
        one.add({'loss': torch.tensor(20000.0)}, step=3, image_ids=[3])
        with pytest.raises(DivergedError, match='from 50 at the start'):
            one.look()


def test_the_share_of_an_idle_process_is_no_part_of_a_batch() -> None:
    shares = [(0.75, SeenBatch(1, (1, 2, 3), {'loss': 2.0})), (0.25, SeenBatch(1, (4,), {'loss': 6.0, 'other': 1.0}))]
    idle = (0.0, SeenBatch(1, (1,), {'loss': math.nan}))
    assert merged([*shares, idle]) == SeenBatch(1, (1, 2, 3, 4), {'loss': 3.0, 'other': 0.25})


def test_the_file_is_json(tmp_path: Path) -> None:
    file = tmp_path / 'diverged.jsonl'
    seen = [SeenBatch(7, (1, 2), {'loss_cls': 0.5, 'loss_bbox': -math.inf})]
    describe(DivergedError('x', seen), losses_file=file, progress_file=tmp_path / 'none.pth')
    content = json.loads(file.read_text(), parse_constant=lambda constant: pytest.fail(constant))
    assert content == {'step': 7, 'image_ids': [1, 2], 'losses': {'loss_cls': 0.5, 'loss_bbox': '-inf'}}


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[int]]]:
    """`poisoned(step, value)` makes a loss of that batch of the run this; gives the images of every batch."""

    def poison(step: int, value: float) -> list[list[int]]:
        drawn: list[list[int]] = []

        def losses(stage: Any, samples: Any, *rest: Any, **options: Any) -> dict[str, torch.Tensor]:
            found = step_losses(stage, samples, *rest, **options)
            drawn.append([one.image_id for one in samples])
            if len(drawn) == step:
                found['loss_bbox'] = found['loss_bbox'] * value
            return found

        monkeypatch.setattr('mtpd_train.training.step.step_losses', losses)
        return drawn

    return poison


def test_a_run_names_the_batch_and_keeps_the_last_good_state(
    poisoned: Any, stages: list[Path], train: Any, train_error: Any, tmp_path: Path
) -> None:
    """Seen only at the end of the second epoch, in whose middle it happened."""
    drawn = poisoned(9, math.nan)
    out = tmp_path / 'run'
    line = train_error(stages[0], '--out', out)
    progress, file = out / 'stage1' / 'progress.pth', out / 'stage1' / 'diverged.jsonl'
    assert len(drawn) == 12
    images = ', '.join(map(str, drawn[8]))
    assert f'stage 1: loss_bbox, nan in step 9 on the images {images}; {file} lists the losses' in line
    assert f'train again from init.checkpoint={progress}, the last good state, in another --out, with a lower' in line
    seen = [json.loads(text) for text in file.read_text().splitlines()]
    assert [one['step'] for one in seen] == [7, 8, 9, 10, 11, 12]
    assert [one['image_ids'] for one in seen] == drawn[6:]
    assert seen[2]['losses']['loss_bbox'] == 'nan'
    state = torch.load(progress, weights_only=True)
    assert (state['epoch'], state['step']) == (1, 6)
    assert all(value.isfinite().all() for value in state['model'].values())
    # The advice can be followed.
    poisoned(0, math.nan)
    again = ('--set', f'init.checkpoint={progress}', '--set', 'optim.lr=1e-4', '--set', 'optim.epochs=1')
    assert f'student from {progress}' in train(stages[0], '--out', tmp_path / 'again', *again).output


def test_an_exploded_loss_stops_a_run(
    poisoned: Any, stages: list[Path], train: Any, train_error: Any, tmp_path: Path
) -> None:
    """In its first epoch: there is nothing to go back to."""
    drawn = poisoned(3, 1e6)
    line = train_error(stages[1], '--out', tmp_path, '--set', 'optim.lr=1e-9')
    assert 'stage 1: the loss has exploded, from ' in line
    images = ', '.join(map(str, drawn[2]))
    assert f'in step 2 on the images {images}; ' in line
    assert 'train again from its start in another --out' in line
    # What the file says is of that attempt alone.
    assert (tmp_path / 'stage1' / 'diverged.jsonl').exists()
    poisoned(0, math.nan)
    train(stages[1], '--out', tmp_path, '--set', 'optim.lr=1e-9', '--resume')
    assert not (tmp_path / 'stage1' / 'diverged.jsonl').exists()


@pytest.mark.parametrize('grad_clip', [None, 10.0])
def test_a_training_that_diverges(
    grad_clip: float | None, write_stage: Callable[..., Path], train_error: Callable[..., str], tmp_path: Path
) -> None:
    optim = {'type': 'sgd', 'lr': 1e30, 'warmup_iters': 0, 'grad_clip': grad_clip, 'epochs': 3}
    stage = write_stage(tmp_path / 'stage.yaml', optim=optim)
    line = train_error(stage, '--out', tmp_path / 'run')
    assert 'stage 1: loss_cls, nan in step 2 on the images ' in line
    assert 'lower optim.lr' in line
    assert not list(tmp_path.rglob('*.pth'))


def test_weights_that_diverge_in_the_last_step(
    write_stage: Callable[..., Path], train_error: Callable[..., str], tmp_path: Path
) -> None:
    """Every loss that was seen is finite, but the student must not be saved."""
    optim = {'type': 'sgd', 'lr': 1e38, 'weight_decay': 1e6, 'warmup_iters': 0, 'grad_clip': None}
    stage = write_stage(tmp_path / 'stage.yaml', optim=optim, data={'batch_size': 24})
    line = train_error(stage, '--out', tmp_path / 'run')
    assert 'of the student is not finite after step 1' in line
    assert not list(tmp_path.rglob('*.pth'))
