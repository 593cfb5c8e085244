"""A teacher in the loop: what it computes is nobody else's, what is recorded of it, and what users get wrong."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.system.interrupt import StopFlag
from mtpd_train.stage import Stage
from mtpd_train.teachers.live_teacher import LiveTeacher
from mtpd_train.training.loop import train_stage
from mtpd_train.training.step import loaded, step_losses

CPU = torch.device('cpu')
DISTILL = [{'loss': 'masked_mse', 'levels': ['p3']}]
Live = Callable[[int], dict[str, str]]

# Maps of the same strides as the demo's student, in a form of its own.
NET = """
import torch
from torch import nn


class Net(nn.Module):
    mean, std = (110.0, 115.0, 120.0), (60.0, 55.0, 50.0)
    scale = (128, 128)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.p2 = nn.Conv2d(3, 6, 5, stride=4, padding=2)
        self.p3 = nn.Conv2d(6, 5, 3, stride=2, padding=1)

    def features(self, images):
        p2 = self.p2(images)
        return [p2, self.p3(p2)]


def build(checkpoint):
    net = Net()
    if checkpoint is not None:
        net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    """A teacher of the user's own."""
    (tmp_path / 'net.py').write_text(NET)
    return f'{tmp_path / "net.py"}:build'


@pytest.mark.parametrize(
    ('maps', 'said'),
    [
        ('[p2, self.p3(p2) * float("nan")]', r'level p3, view plain of the images with ids \d+.* not finite'),
        (
            '[p2, 3.0 + 1e-5 * self.p3(p2)]',
            'level p3 is nearly constant: its features have a standard deviation of .* and means of 3',
        ),
        ('[p2, 1e-9 * self.p3(p2)]', 'level p3 is nearly constant'),
        (
            '[p2, self.p3(p2 if len(images) == 1 else p2[..., :-8])]',
            'its stride is not 8 there',
        ),
    ],
)
def test_maps_that_teach_nothing(
    net: str, maps: str, said: str, train_error: Any, write_stage: Any, tmp_path: Path
) -> None:
    """Found before the training starts; levels that no loss compares do not matter."""
    (tmp_path / 'net.py').write_text(NET.replace('return [p2, self.p3(p2)]', f'return {maps}'))
    stage = write_stage(tmp_path / 'stage.yaml', teacher=net, distill=DISTILL, data={'val': None, 'flip': 0})
    assert re.search(said, train_error(stage, '--out', tmp_path / 'run'))


def test_training_leaves_the_teacher_alone(
    build_stage: Callable[..., Stage], live: Live, train: Any, write_stage: Any, tmp_path: Path
) -> None:
    """In eval mode, without gradients, with the weights of its checkpoint; and in no file that training writes."""
    stage = build_stage(**live(16), distill=DISTILL, data={'val': None})
    assert isinstance(stage.source, LiveTeacher)
    module = stage.source.teacher.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    files: dict[str, Any] = {'progress_file': tmp_path / 'progress.pth', 'metrics_file': tmp_path / 'metrics.jsonl'}
    train_stage(stage, device=CPU, stop=StopFlag(), **files)
    assert not any(one.training for one in module.modules())
    assert not any(one.requires_grad or one.grad is not None for one in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    trained = torch.load(tmp_path / 'progress.pth', weights_only=True)
    own = stage.student.module.state_dict().keys()
    assert trained['model'].keys() == own
    assert set(trained['distiller']) == {f'losses.masked_mse/p3.adapter.{part}' for part in ('weight', 'bias')}
    train(
        write_stage(tmp_path / 'stage.yaml', **live(16), distill=DISTILL, data={'val': None}), '--out', tmp_path / 'run'
    )
    assert torch.load(tmp_path / 'run' / 'student.pth', weights_only=True)['state_dict'].keys() == own


def test_its_maps_are_float32_in_half_precision_training_too(
    build_stage: Callable[..., Stage], live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    maps_of = LiveTeacher.maps

    def watched(self: LiveTeacher, *arguments: Any, **options: Any) -> dict[str, EncodedMaps]:
        maps = maps_of(self, *arguments, **options)
        with torch.autocast('cpu', torch.bfloat16):
            inside = maps_of(self, *arguments, **options)
        assert all(torch.equal(inside[name].values(), one.values()) for name, one in maps.items())
        given.append(maps)
        return maps

    monkeypatch.setattr(LiveTeacher, 'maps', watched)
    for precision in ('fp32', 'bf16'):
        stage = build_stage(**live(16), distill=DISTILL, optim={'precision': precision})
        samples, ahead = next(loaded(stage, stage.epoch_batches(0)))
        step_losses(stage, samples, ahead)
    assert [maps['p3'].codes.dtype for maps in given] == [torch.float32] * 2
    assert torch.equal(given[0]['p3'].codes, given[1]['p3'].codes)
    assert not given[1]['p3'].codes.requires_grad


def test_inheritance_is_that_of_the_cache(
    build_stage: Callable[..., Stage], live: Live, caches: dict[int, Path]
) -> None:
    shared: dict[str, Any] = {
        'distill': [], 'model': dict.fromkeys(('neck.out_channels', 'bbox_head.in_channels'), 16),
        'init': {'backbone': 'none', 'inherit': ['neck', 'head']},
    }  # fmt: skip
    cached, online = build_stage(**shared, cache=caches[16]), build_stage(**shared, **live(16))
    states = [stage.student.module.state_dict() for stage in (cached, online)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert cached.inheritance == online.inheritance
    assert len(online.inheritance) > 8
    assert cached.source is not None
    assert online.source is not None
    assert cached.source.hook_point == online.source.hook_point
    assert cached.source.levels == online.source.levels


def test_a_teacher_of_the_users_own(
    net: str, train: Any, train_error: Any, write_stage: Any, tmp_path: Path, records: Any
) -> None:
    """It states its input; what the stage file says of the geometry goes before that."""
    stage = write_stage(tmp_path / 'stage.yaml', teacher=net, distill=[{'loss': 'mgd'}])
    output = train(stage, '--out', tmp_path / 'run').output
    assert f' at 128x128, teacher {net} in the loop' in output
    losses = records(tmp_path / 'run', 'train')[0]['losses']
    assert losses.keys() == {'loss_cls', 'loss_bbox', 'total', 'distill/mgd/p2', 'distill/mgd/p3'}
    stage = write_stage(tmp_path / 'other.yaml', teacher=net, distill=DISTILL, data={'geometry': {'scale': '96x64'}})
    assert ' at 96x64' in train(stage, '--out', tmp_path / 'no_run', '--dry-run').output
    Path(net.removesuffix(':build')).write_text(NET.replace('std', 'deviation'))
    assert 'its std is unknown' in train_error(stage, '--out', tmp_path / 'no_run')
    assert not (tmp_path / 'no_run').exists()


def test_run_json_and_resuming_with_another_teacher(
    live: Live, teachers: dict[int, Path], train: Any, train_error: Any, write_stage: Any, tmp_path: Path
) -> None:
    checkpoint = tmp_path / 'teacher.pth'
    shutil.copy(teachers[16] / 'student.pth', checkpoint)
    stage = write_stage(tmp_path / 'stage.yaml', **live(16) | {'checkpoint': str(checkpoint)}, distill=DISTILL)
    train(stage, '--out', tmp_path / 'run')
    content = json.loads((tmp_path / 'run' / 'run.json').read_bytes())
    assert content['caches'] == {}
    ((name, recorded),) = content['teachers'].items()
    assert name == f'{live(16)["teacher"]} from {checkpoint}'
    assert recorded['fingerprint']['teacher'].keys() >= {'weights', 'definition', 'hook_point'}
    train(stage, '--out', tmp_path / 'run', '--resume')
    file = torch.load(checkpoint, weights_only=True)
    file['state_dict']['neck.fpn_convs.0.conv.bias'][0] += 1e-3
    torch.save(file, checkpoint)
    line = train_error(stage, '--out', tmp_path / 'run', '--resume')
    weights = recorded['fingerprint']['teacher']['weights']
    assert f'teachers.{name}.fingerprint.teacher.weights was {weights} and is ' in line


def test_the_fingerprint_is_that_of_the_cache(
    build_stage: Callable[..., Stage], live: Live, caches: dict[int, Path]
) -> None:
    online = build_stage(**live(16), distill=DISTILL)
    assert online.source is not None
    manifest = json.loads((caches[16] / 'manifest.json').read_bytes())['description']['fingerprint']
    recorded = json.loads(json.dumps(online.source.description['fingerprint']))
    assert recorded == {name: manifest[name] for name in ('teacher', 'normalisation')}


def test_what_users_get_wrong(live: Live, train_error: Any, write_stage: Any, tmp_path: Path) -> None:
    def error(**changes: Any) -> str:
        stage = write_stage(tmp_path / 'stage.yaml', **{'distill': DISTILL} | changes)
        line = train_error(stage, '--out', tmp_path / 'run')
        assert not (tmp_path / 'run').exists()
        return str(line)

    config = live(16)['teacher']
    assert 'needs its weights: add --checkpoint FILE, or `checkpoint: FILE` to a stage file' in error(teacher=config)
    assert 'nowhere.pth: there is no such file' in error(teacher=config, checkpoint=tmp_path / 'nowhere.pth')
    assert 'retinanet_r10_fpn' in error(teacher='retinanet_r10_fpn_1x_coco')
    assert 'hook before-norm: the neck of' in error(**live(16), hook='before-norm')
    assert 'cannot distil p7' in error(**live(16), distill=[{'loss': 'pkd', 'levels': ['p7']}])
    torch.save({'state_dict': torch.load(live(16)['checkpoint'], weights_only=True)['state_dict'], 'log': Path()},
               tmp_path / 'pickle.pth')  # fmt: skip
    pickled = {'teacher': config, 'checkpoint': tmp_path / 'pickle.pth'}
    assert '`trust_checkpoint: true` for its teacher' in error(**pickled)


def test_a_trusted_checkpoint(build_stage: Callable[..., Stage], live: Live, tmp_path: Path) -> None:
    state = torch.load(live(16)['checkpoint'], weights_only=True)['state_dict']
    torch.save({'state_dict': state, 'log': Path()}, tmp_path / 'pickle.pth')
    settings = live(16) | {'checkpoint': str(tmp_path / 'pickle.pth')}
    stage = build_stage(**settings, trust_checkpoint=True, distill=DISTILL)
    assert stage.source is not None
