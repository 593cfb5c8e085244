"""Bit for bit the same after a kill, with everything that a stage may have: the average, accumulation, augmentation."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

OPTIONS = (
    'optim.ema=0.9', 'optim.accumulate=2', 'optim.grad_clip=1.0', 'optim.schedule=onecycle', 'optim.precision=bf16',
    'data.workers=1', 'data.photometric={probability: 0.8}', 'evaluate.every=2',
)  # fmt: skip
CLOCK = ('images_per_second', 'data_wait', 'peak_memory', 'seconds')


@pytest.mark.slow
def test_kill_9_with_all_options(
    stages: list[Path], train: Callable[..., Any], start: Any, wait_for: Any, tmp_path: Path
) -> None:
    changes = [text for one in OPTIONS for text in ('--set', one)]
    whole, out = tmp_path / 'whole', tmp_path / 'run'
    train(stages[0], '--out', whole, *changes)
    program = start(stages[0], '--out', out, *changes, '--set', 'save.every_minutes=1e-9')
    # Three steps an epoch: in the middle of the second.
    wait_for(lambda: _position(out) > (1, 3))
    program.kill()
    assert program.wait() == -signal.SIGKILL
    train(stages[0], '--out', out, '--resume', *changes)
    found, wanted = (torch.load(run / 'student.pth', weights_only=True)['state_dict'] for run in (out, whole))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    logs = [_records(run) for run in (out, whole)]
    assert logs[0] == logs[1]


def _position(run: Path) -> tuple[int, int]:
    path = run / 'stage1' / 'progress.pth'
    if not path.exists():
        return 0, 0
    content = torch.load(path, weights_only=True)
    return content['epoch'], content['step']


def _records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
