"""Every recipe for COCO at small size: a teacher with random weights is extracted as its head says, then one step.

The networks are those of the recipe, but for the teachers' backbones, which have fewer blocks: necks and heads are
whole.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd_train.optimization import build_optimizer
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.stage import Stage, build_stages
from mtpd_train.training.step import loaded, step_losses

# mmengine 0.10.7 on Python 3.12.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:'pkgutil.find_loader' is deprecated:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / 'configs' / 'coco').glob('*.yaml'))
TEACHERS = sorted((ROOT / 'configs' / 'teachers').glob('*.yaml'))
CPU = torch.device('cpu')
SMALL = ('data.batch_size=1', 'data.workers=0', 'data.val=null', 'init.backbone=none', 'optim.warmup_iters=0')

Extracted = Callable[[Path], Path]
HeadCommands = Callable[[Path], list[list[str]]]


@pytest.fixture(scope='module')
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, annotated with shapes under COCO's number of classes."""
    folder = tmp_path_factory.mktemp('small') / 'coco'
    make_synthetic_set(folder, SyntheticSpec(num_train=3, num_val=1, sizes=((128, 128),)))
    path = folder / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_bytes())
    content['categories'] = [{'id': number, 'name': f'class {number}'} for number in range(1, 81)]
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope='module')
def extracted(
    tmp_path_factory: pytest.TempPathFactory, extract: Any, coco: Path, head_commands: HeadCommands
) -> Extracted:
    """`extracted(cache)` is the cache that some recipe's head says how to make, made small; each is made once."""
    folder = tmp_path_factory.mktemp('recipes')
    commands = {
        Path(value_of(command, '--out')): command
        for path in RECIPES
        for command in head_commands(path)
        if command[0] == 'mtpd-extract'
    }

    def make(cache: Path) -> Path:
        out: Path = folder / cache.name
        if not out.exists():
            command = commands[cache]
            config = small_teacher(value_of(command, '--teacher'), folder / cache.name)
            levels = ('--levels', value_of(command, '--levels')) if '--levels' in command else ()
            checkpoint = config.with_suffix('.pth')
            extract('--teacher', config, '--checkpoint', checkpoint, '--out', out, '--coco', coco, *levels,
                    '--scale', '128x128')  # fmt: skip
            checkpoint.unlink()
        return out

    return make


def value_of(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def small_teacher(reference: str, stem: Path) -> Path:
    """The config of a teacher with a shorter backbone, beside a checkpoint of random weights."""
    config = load_config(str(ROOT / reference) if reference.endswith('.py') else reference)
    backbone = config.model.backbone
    if 'depths' in backbone:
        backbone.depths = [1, 1, 1, 1]
    else:
        backbone.depth = 50
    path = stem.with_suffix('.py')
    config.dump(path)
    torch.manual_seed(0)
    torch.save({'state_dict': build_detector(config).state_dict()}, path.with_suffix('.pth'))
    return path


def one_step(stage: Stage) -> dict[str, float]:
    """Losses of the first batch, after an optimizer step by their sum."""
    model: Any = stage.student.module.train()
    modules = (model, stage.distiller)
    parameters = [one for module in modules for one in module.parameters() if one.requires_grad]
    optim = stage.settings.optim
    optimizer = build_optimizer(model, stage.distiller, optim)
    before = {name: value.clone() for name, value in model.named_parameters()}
    samples, ahead = next(loaded(stage, stage.epoch_batches(0)))
    losses = step_losses(stage, samples, ahead)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    torch.nn.utils.clip_grad_norm_(parameters, optim.grad_clip or 35.0, error_if_nonfinite=True)
    optimizer.step()
    for part in ('backbone.layer4' if hasattr(model.backbone, 'layer4') else 'backbone', 'neck'):
        assert any(
            not torch.equal(value, before[name]) for name, value in model.named_parameters() if name.startswith(part)
        )
    return {name: value.item() for name, value in losses.items()}


def test_every_cache_of_a_recipe_is_made_by_a_command_in_a_head(head_commands: HeadCommands) -> None:
    commands = [command for path in RECIPES for command in head_commands(path) if command[0] == 'mtpd-extract']
    made = {value_of(command, '--out') for command in commands}
    for path in RECIPES:
        (stage,) = load_stages([path])
        assert str(stage.cache) in made


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_one_step(path: Path, coco: Path, extracted: Extracted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fewer_rois = ['model.train_cfg.rcnn.sampler.num=64'] if 'rcnn' in path.stem else []
    (settings,) = load_stages([path], overrides=[*SMALL, *fewer_rois, f'data.coco={coco}'])
    assert isinstance(settings.cache, Path)
    (stage,) = build_stages([settings.model_copy(update={'cache': extracted(settings.cache)})])
    losses = one_step(stage)
    kinds = {name.split('/')[1] for name in losses if name.startswith('distill/')}
    assert kinds == {entry.loss for entry in settings.distill}
    assert all(value > 0 for name, value in losses.items() if name.startswith('distill/'))
    outcomes = {entry.outcome for entry in stage.inheritance}
    assert ('inherited' in outcomes) == bool(settings.init.inherit)
    assert ('tiled' in outcomes) == ('cascade_r50' in path.stem)
    assert stage.hook_point == ('neck.fpn_convs.conv' if 'reppoints' in path.stem else 'neck')


@pytest.mark.parametrize('path', TEACHERS, ids=lambda path: path.stem)
def test_a_teacher_is_trained(path: Path, coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shorter = ('model.backbone.depths=[1, 1, 1, 1]', 'data.geometry={scale: 128x128}')
    (settings,) = load_stages([path], overrides=[*SMALL, *shorter, f'data.coco={coco}'])
    (stage,) = build_stages([settings])
    assert one_step(stage).keys() == {'loss_cls', 'loss_bbox'}
