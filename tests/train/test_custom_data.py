"""A data set of one's own, from fine-tuning a teacher to the evaluation of a student distilled from it.

The set is the synthetic one under other names: its own classes, category and image ids with gaps, images in folders,
files that do not lie as COCO's do. What is trained on it must be, bit for bit, what is trained on the original.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import mtpd.cache
from mtpd.errors import InputError, UnavailableError
from mtpd_train.evaluator.cli import main as evaluate_main
from mtpd_train.stage import Stage

CATEGORIES = {3: 'Große Kiste', 8: 'kite (red)', 12: 'a, b', 40: "driver's seat", 41: '車', 90: '90'}
OWN_CONFIG = """\
_base_ = {base!r}
model = dict(
    neck=dict(out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, num_classes=6),
    test_cfg=dict(score_thr=0.0),
)
"""
LR = {'lr': 4e-3, 'epochs': 3}


@dataclass(frozen=True)
class Outcome:
    """What came of one set: the losses of teacher and student, and the evaluation of the student."""

    losses: list[dict[str, float]]
    metrics: dict[str, float]
    cache: Path
    run: Path


@pytest.fixture(scope='module')
def own_set(synthetic_set: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """`train` and `val` as a stage file names them."""
    folder = tmp_path_factory.mktemp('my data')
    splits = {}
    for split, name in (('train2017', 'train'), ('val2017', 'val')):
        document = json.loads((synthetic_set / 'annotations' / f'instances_{split}.json').read_text())
        for image in document['images']:
            target = folder / 'pictures' / name / f'camera {image["id"] % 3}' / image['file_name']
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(synthetic_set / split / image['file_name'], target)
            image |= {'file_name': str(target.relative_to(folder / 'pictures')), 'id': 10 * image['id'] + 5}
        own_ids = dict(zip(sorted(one['id'] for one in document['categories']), CATEGORIES, strict=True))
        for one in document['annotations']:
            one |= {'image_id': 10 * one['image_id'] + 5, 'category_id': own_ids[one['category_id']]}
        document['categories'] = [{'id': number, 'name': CATEGORIES[number]} for number in reversed(CATEGORIES)]
        annotations = folder / f'{name}.json'
        annotations.write_text(json.dumps(document))
        splits[name] = {'images': str(folder / 'pictures'), 'annotations': str(annotations)}
    return splits


@pytest.fixture(scope='module')
def run_all(
    train: Callable[..., Any],
    extract: Callable[..., Any],
    write_stage: Callable[..., Path],
    records: Callable[..., list[dict[str, Any]]],
    random_weights: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Outcome]:
    """`run_all(data, option, ...)` fine-tunes a teacher, extracts with these options, distils and evaluates."""
    folder = tmp_path_factory.mktemp('runs')
    own_config = folder / 'my_teacher.py'
    base = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
    own_config.write_text(OWN_CONFIG.format(base=str(base)))
    weights = random_weights(own_config, num_classes=80)

    def run(data: dict[str, Any], *options: object) -> Outcome:
        place = tmp_path_factory.mktemp('run')
        teacher = write_stage(
            place / 'teacher.yaml', student=str(own_config), init={'fine_tune': str(weights)}, data=data, optim=LR
        )
        train(teacher, '--out', place / 'teacher')
        checkpoint = place / 'teacher' / 'student.pth'
        extract('--teacher', own_config, '--checkpoint', checkpoint, '--out', place / 'cache', *options)
        distill = [{'loss': 'masked_mse', 'weight': 0.1}]
        changes = {'cache': place / 'cache', 'distill': distill, 'data': data, 'optim': LR}
        train(write_stage(place / 'student.yaml', **changes), '--out', place / 'student')
        steps = [*records(place / 'teacher', 'train'), *records(place / 'student', 'train')]
        metrics = records(place / 'student', 'evaluation')[-1]['metrics']
        return Outcome([one['losses'] for one in steps], metrics, place / 'cache', place / 'student')

    return run


@pytest.fixture(scope='module')
def outcome(own_set: dict[str, dict[str, str]], run_all: Callable[..., Outcome]) -> Outcome:
    train = own_set['train']
    return run_all(dict(own_set), '--images', train['images'], '--annotations', train['annotations'])


def test_it_is_what_the_original_set_gives(
    outcome: Outcome, synthetic_set: Path, run_all: Callable[..., Outcome]
) -> None:
    original = run_all({'coco': str(synthetic_set)}, '--coco', synthetic_set)
    assert outcome.losses == original.losses
    assert outcome.metrics == original.metrics
    assert original.metrics['box/AP50'] > 0, 'else the classes of detections would not matter'


def test_the_cache_has_the_images_by_their_own_ids(outcome: Outcome) -> None:
    assert sorted(mtpd.cache.open(outcome.cache).image_ids) == [10 * number + 5 for number in range(1, 25)]


def test_the_student_carries_the_names_of_its_classes(outcome: Outcome) -> None:
    names = tuple(CATEGORIES.values())
    assert torch.load(outcome.run / 'student.pth', weights_only=True)['meta']['dataset_meta']['classes'] == names
    config: dict[str, Any] = {}
    exec((outcome.run / 'student_config.py').read_text(), config)
    assert config['model']['bbox_head']['num_classes'] == 6
    assert '車' in (outcome.run / 'student_config.py').read_text()


def test_its_evaluation_speaks_of_own_classes_and_ids(outcome: Outcome, tmp_path: Path) -> None:
    """`mtpd-eval RUN` knows the set; its numbers are those of the training's last evaluation."""
    files = ['--json', str(tmp_path / 'scores.json'), '--results', str(tmp_path / 'found.json')]
    result = CliRunner().invoke(evaluate_main, [str(outcome.run), *files, '--classes', '--workers', '0'])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / 'found.json').read_text())
    boxes = found if isinstance(found, list) else found['box']
    assert {one['category_id'] for one in boxes} <= set(CATEGORIES)
    assert len({one['category_id'] for one in boxes}) > 1
    assert {one['image_id'] % 10 for one in boxes} == {5}
    text = (tmp_path / 'scores.json').read_text()
    assert all(json.dumps(name)[1:-1] in text or name in text for name in CATEGORIES.values())
    assert all(name in result.output for name in CATEGORIES.values())


def test_fine_tuning_takes_all_but_the_class_layers(
    build_stage: Callable[..., Stage], random_weights: Callable[..., Path]
) -> None:
    tiny = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
    weights = random_weights(tiny, num_classes=80)
    fresh, stage = build_stage(), build_stage(init={'fine_tune': str(weights)})
    source = torch.load(weights, weights_only=True)['state_dict']
    anew = [f'bbox_head.retina_cls.{kind}' for kind in ('weight', 'bias')]
    for name, value in stage.student.module.state_dict().items():
        wanted = fresh.student.module.state_dict()[name] if name in anew else source[name]
        assert torch.equal(value, wanted), name
    assert stage.origin is not None
    assert stage.origin.endswith(f'initialised: {", ".join(anew)}')
    assert f'fine-tuned from {weights}: ' in stage.origin


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model': {'neck.out_channels': 16, 'bbox_head.in_channels': 16}}, 'has .* for neck.* different network'),
        ({'model': {'neck.num_outs': 5, 'neck.add_extra_convs': 'on_output'}}, 'lacks neck.fpn_convs.4'),
    ],
)
def test_fine_tuning_another_network(
    changes: dict[str, Any], message: str, build_stage: Callable[..., Stage], random_weights: Callable[..., Path]
) -> None:
    tiny = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
    with pytest.raises(InputError, match=message):
        build_stage(**changes, init={'fine_tune': str(random_weights(tiny, num_classes=80))})


def test_fine_tuning_what_is_not_there(build_stage: Callable[..., Stage]) -> None:
    with pytest.raises(InputError, match=r'nowhere\.pth: there is no such file'):
        build_stage(init={'fine_tune': 'nowhere.pth'})
    with pytest.raises(InputError, match='did you mean'):
        build_stage(init={'fine_tune': 'retinanet_r50_fpn_1x_cocoo'})
    with pytest.raises(InputError, match='cannot be combined with `checkpoint`'):
        build_stage(init={'fine_tune': 'r101', 'checkpoint': 'a.pth'})


def test_fine_tuning_without_a_network(
    build_stage: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the zoo with a dot, which is no file; a port that cannot be: nobody listens."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    for name in ('http_proxy', 'https_proxy', 'HTTPS_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:1')
    name = 'mask-rcnn_r50_fpn_sample1e-3_ms-2x_lvis-v0.5'
    with pytest.raises(UnavailableError, match=r'cannot fetch https://.*; set init\.fine_tune to a local file'):
        build_stage(init={'fine_tune': name})
