"""A student whose config freezes what starts from random weights: it is trained, and said so, or it is warned of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd_train.settings.stage_file import load_stages
from mtpd_train.stage import Stage, build_stages

TINY = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
STEM = 15  # parameters of the first convolution, its norm and the two blocks of the first stage


@pytest.fixture
def frozen(tmp_path: Path) -> str:
    """The tiny student, with a stem that is frozen as the zoo's are, and a recipe of its own."""
    path = tmp_path / 'frozen.py'
    path.write_text(
        f'_base_ = {str(TINY)!r}\n'
        'model = dict(backbone=dict(frozen_stages=1, norm_eval=True))\n'
        'custom_hooks = [dict(type="EMAHook"), dict(type="OwnHook")]\n'
    )
    return str(path)


def fixed(stage: Stage) -> int:
    """Parameters that are not trained."""
    return sum(not one.requires_grad for one in stage.student.module.train().parameters())


def test_a_random_stem_is_trained_in_every_stage(
    frozen: str, write_stage: Callable[..., Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    # The second goes on with the student of the first, whatever its `init.backbone`.
    files = [
        write_stage(tmp_path / f'{choice}.yaml', student=frozen, init={'backbone': choice}, data={'val': None})
        for choice in ('none', 'pretrained')
    ]
    stages = build_stages(load_stages(files))
    for stage in stages:
        assert fixed(stage) == 0
        assert not stage.frozen_at_random
        assert stage.student.module.get_submodule('backbone.bn1').training
        assert 'frozen_stages=-1' in stage.config_text
        assert 'norm_eval=False' in stage.config_text
    result = train(*files, '--out', tmp_path / 'run')
    lines = result.stdout.splitlines()
    assert sum('backbone.frozen_stages: -1, backbone.norm_eval: False' in line for line in lines) == 1
    # The recipe is the same in both stages.
    (recipe,) = [line for line in lines if 'OwnHook' in line]
    assert 'EMAHook (optim.ema)' in recipe
    told = json.loads((tmp_path / 'run' / 'run.json').read_bytes())['not_taken_over']
    assert told['1'] == told['2'] == ['EMAHook (optim.ema)', 'OwnHook']


def test_loaded_weights_stay_frozen(frozen: str, build_stage: Callable[..., Stage], tmp_path: Path) -> None:
    whole = build_stage().student.module
    torch.save(whole.state_dict(), tmp_path / 'whole.pth')
    for init in ({'backbone': str(tmp_path / 'whole.pth')}, {'checkpoint': str(tmp_path / 'whole.pth')}):
        stage = build_stage(student=frozen, init=init)
        assert fixed(stage) == STEM
        assert not stage.unfrozen
        assert not stage.frozen_at_random


def test_who_freezes_random_weights_on_purpose_is_warned(
    frozen: str, write_stage: Callable[..., Path], train: Callable[..., Any], tmp_path: Path
) -> None:
    stage = write_stage(tmp_path / 'a.yaml', student=frozen, model={'backbone': {'frozen_stages': 1}})
    result = train(stage, '--out', tmp_path / 'run', '--dry-run', '--trial-steps', 0)
    (line,) = [one for one in result.stderr.splitlines() if one.startswith('warning: ')]
    assert f'{STEM} parameters' in line
    assert 'backbone.' in line
    assert 'backbone.norm_eval: False' in result.stdout
