"""The library as its users see it: public names alone, all of them documented."""

import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mtpd.cache
from mtpd.detectors import InputOptions, load_teacher
from mtpd.errors import CacheError, CacheIncompleteError, InputError
from mtpd.geometry import Level
from mtpd.losses import (
    CosineOptions,
    CwdOptions,
    Decay,
    Distiller,
    FgdOptions,
    FineGrainedOptions,
    LevelOptions,
    MaskedMseOptions,
    MgdOptions,
    PkdOptions,
    TarFeatureOptions,
)
from mtpd.ordering import adaptation_costs, backward_greedy

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / 'tests' / 'cache' / 'golden' / 'v1'
MODULES = ('mtpd.cache', 'mtpd.detectors', 'mtpd.errors', 'mtpd.geometry', 'mtpd.losses', 'mtpd.ordering')
PAGE = (ROOT / 'docs' / 'reference' / 'api.md').read_text()


def test_every_public_name_is_there_and_documented() -> None:
    public = {f'{module}.{name}' for module in MODULES for name in importlib.import_module(module).__all__}
    errors = {f'mtpd.errors.{name}' for name in re.findall(r'members: \[(.*)\]', PAGE)[0].split(', ')}
    assert set(re.findall(r'^::: (\S+)', PAGE, re.MULTILINE)) - {'mtpd.errors'} | errors == public
    for path in public:
        module, _, name = path.rpartition('.')
        assert getattr(importlib.import_module(module), name).__doc__, path


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match='no attribute'):
        importlib.import_module('mtpd.detectors').no_such_name  # noqa: B018


@pytest.mark.parametrize('codec', ['fp16', 'int8', 'lean'])
def test_caches_are_opened_and_decoded(codec: str) -> None:
    cache = mtpd.cache.open(GOLDEN / codec)
    expected = json.loads((GOLDEN / f'{codec}.expected.json').read_bytes())
    assert cache.levels == (Level('p3', 8, 2), Level('p4', 16, 4))
    assert {str(image_id) for image_id in cache.image_ids} == expected.keys()
    for image_id in cache.image_ids:
        assert cache.sizes(image_id).padded == cache.geometry.padded(cache.sizes(image_id).original)
        for view in cache.views:
            maps = cache.read(image_id, view)
            assert {name: one.tolist() for name, one in maps.items()} == expected[str(image_id)][view]


def test_errors_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CacheIncompleteError):
        mtpd.cache.open(tmp_path / 'no-cache')
    with pytest.raises(InputError):
        load_teacher('no-such-model', checkpoint=None, options=InputOptions(), device=torch.device('cpu'))
    assert issubclass(CacheIncompleteError, CacheError)


@pytest.mark.parametrize(
    'options',
    [
        MaskedMseOptions(adapter='always', decay=Decay(kind='linear')),
        MgdOptions(),
        PkdOptions(adapter='always'),
        CwdOptions(),
        CosineOptions(),
        FineGrainedOptions(),
        TarFeatureOptions(),
        FgdOptions(),
    ],
    ids=lambda options: options.loss,
)
def test_a_student_is_distilled_from_a_cache(options: LevelOptions) -> None:
    torch.manual_seed(0)
    cache = mtpd.cache.open(GOLDEN / 'int8')
    teacher = {name: one[None] for name, one in cache.read(7).items()}
    levels = [Level(level.name, level.stride, 3) for level in cache.levels]
    student = {level.name: torch.randn(1, 3, *teacher[level.name].shape[2:], requires_grad=True) for level in levels}
    masks = {name: torch.ones(1, 1, *one.shape[2:], dtype=torch.bool) for name, one in teacher.items()}
    anchors = {stride: torch.tensor([[-stride, -stride, 2 * stride, 2 * stride]]) for stride in (8, 16)}
    distiller = Distiller([options], student=levels, teacher=cache.levels, anchors=anchors)
    losses = distiller(student, teacher, masks, boxes=[torch.tensor([[2.0, 2.0, 20.0, 14.0]])], progress=0.25)
    assert list(losses) == [f'distill/{options.loss}/p3', f'distill/{options.loss}/p4']
    torch.autograd.backward(list(losses.values()))
    for values in [*student.values(), *distiller.parameters()]:
        assert values.grad is not None
        assert values.grad.isfinite().all()


def test_teachers_are_ordered() -> None:
    names = ('fp16', 'int8', 'lean')
    caches = [mtpd.cache.open(GOLDEN / name) for name in names]
    found = adaptation_costs(caches, caches[0].image_ids)
    costs = {(a, b): float(found.costs[i, j]) for i, a in enumerate(names) for j, b in enumerate(names)}
    # The caches hold the same values: a rotation away with `lean`.
    assert max(costs.values()) < 1e-3
    assert set(backward_greedy(costs, names, last='lean').teachers) == set(names)


def test_a_teacher_is_loaded(random_weights: Callable[..., Path]) -> None:
    config = ROOT / 'configs' / 'demo' / 'retinanet_tiny.py'
    weights = random_weights(config)
    teacher = load_teacher(str(config), checkpoint=weights, options=InputOptions(), device=torch.device('cpu'))
    maps = teacher.maps(torch.zeros(2, 3, 64, 96))
    shapes = {level.name: (2, level.channels, *level.grid(64, 96)) for level in teacher.levels}
    assert {name: tuple(one.shape) for name, one in maps.items()} == shapes


def test_the_page_on_adding_a_loss_is_true(tmp_path: Path) -> None:
    page = (ROOT / 'docs' / 'add-a-loss.md').read_text()
    (tmp_path / 'l1.py').write_text(re.findall(r'^```python\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)[0])
    spec = importlib.util.spec_from_file_location('l1', tmp_path / 'l1.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    level = Level('p3', 8, 3)
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[:, :, :2] = True
    distiller = Distiller([module.L1Options(weight=0.5)], student=[level], teacher=[level])
    (loss,) = distiller({'p3': student}, {'p3': teacher}, {'p3': mask}).values()
    torch.testing.assert_close(loss, 0.5 * (student - teacher)[:, :, :2].abs().mean())
