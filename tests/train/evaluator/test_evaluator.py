"""`mtpd-eval` on students and teachers, with the numbers that training recorded, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from mtpd.data.coco import read_annotations
from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored
from mtpd.evaluation import evaluate
from mtpd_train.evaluator.cli import EXAMPLES, main

Records = Callable[..., list[dict[str, Any]]]
DETECTS_ALL = {'test_cfg.score_thr': 0.0}


def evaluated(*arguments: object) -> Result:
    with known_warnings_ignored():
        return CliRunner().invoke(main, [str(one) for one in arguments] + ['--workers', '0', '-q'])


def refused(*arguments: object) -> str:
    """The one line that a refused evaluation leaves on stderr."""
    result = evaluated(*arguments)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith('Error: ')
    assert 'this is a bug' not in line
    return line


@pytest.fixture(scope='module')
def finished(
    tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Any], write_stage: Callable[..., Path]
) -> Path:
    """A run of one stage, with a letterbox, whose student finds at least something."""
    folder = tmp_path_factory.mktemp('evaluated')
    geometry = {'scale': '128x128', 'pad_size': [128, 160]}
    stage = write_stage(folder / 'stage.yaml', model=DETECTS_ALL, data={'geometry': geometry}, optim={'epochs': 3})
    train(stage, '--out', folder / 'run')
    return folder / 'run'


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / 'run'))


def test_a_student_gets_the_numbers_of_its_training(finished: Path, records: Records, tmp_path: Path) -> None:
    recorded = records(finished, 'evaluation')[-1]
    assert recorded['metrics']['box/AP50'] > 0
    for folder in (finished, finished / 'stage1'):
        out = tmp_path / 'scores.json'
        result = evaluated(folder, '--json', out)
        assert result.exit_code == 0, result.output
        found = json.loads(out.read_text())
        assert found['metrics'] == pytest.approx(recorded['metrics'], abs=1e-6)
        assert found['class_ap']['box'] == pytest.approx(recorded['class_ap']['box'], abs=1e-6)
        assert found['num_images'] == 8
        assert f'{100 * found["metrics"]["box/AP"]:.1f}' in result.stdout
        assert f'8 images in {found["seconds"]:.1f} s ({8 / found["seconds"]:.1f} images/s)' in result.stdout


def test_the_results_file_is_coco_s(finished: Path, synthetic_set: Path, records: Records, tmp_path: Path) -> None:
    out = tmp_path / 'results.json'
    assert evaluated(finished, '--results', out).exit_code == 0
    annotations = synthetic_set / 'annotations' / 'instances_val2017.json'
    metrics = evaluate(read_annotations(annotations), json.loads(out.read_text())).metrics
    recorded = records(finished, 'evaluation')[-1]['metrics']
    assert metrics == pytest.approx({name: recorded[f'box/{name}'] for name in metrics}, abs=1e-6)


def test_another_set(finished: Path, synthetic_set: Path, tmp_path: Path) -> None:
    one, other = tmp_path / 'one.json', tmp_path / 'other.json'
    assert evaluated(finished, '--coco', synthetic_set, '--split', 'train2017', '--json', one).exit_code == 0
    annotations = synthetic_set / 'annotations' / 'instances_train2017.json'
    files = ('--images', synthetic_set / 'train2017', '--annotations', annotations)
    assert evaluated(finished, *files, '--json', other).exit_code == 0
    found = [json.loads(path.read_text()) for path in (one, other)]
    assert found[0]['num_images'] == 24
    assert found[0]['metrics'] == found[1]['metrics']


def test_classes_of_another_order_and_other_ids(finished: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """Labels are matched by name: the numbers of every class stay what they were, with what may be missing missing."""
    document = json.loads((synthetic_set / 'annotations' / 'instances_val2017.json').read_text())
    for record, key in [(one, 'id') for one in document['categories']] + [
        (one, 'category_id') for one in document['annotations']
    ]:
        record[key] = 100 - record[key]
    for record in document['annotations']:
        del record['id'], record['iscrowd']
        record['area'] = None
    changed = tmp_path / 'changed.json'
    changed.write_text(json.dumps(document))
    out, other = tmp_path / 'own.json', tmp_path / 'other.json'
    assert evaluated(finished, '--json', out).exit_code == 0
    files = ('--images', synthetic_set / 'val2017', '--annotations', changed)
    assert evaluated(finished, *files, '--json', other).exit_code == 0
    found, again = (json.loads(path.read_text())['class_ap']['box'] for path in (out, other))
    assert list(again) == list(found)[::-1]
    assert again == pytest.approx(found)
    assert len({value for value in found.values() if value >= 0}) > 1


def test_a_config_with_its_checkpoint(finished: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """As a teacher is evaluated; the model's own config says how inputs are made."""
    out, other = tmp_path / 'own.json', tmp_path / 'other.json'
    assert evaluated(finished, '--json', out).exit_code == 0
    model = ('--model', finished / 'student_config.py', '--checkpoint', finished / 'student.pth')
    assert evaluated(*model, '--coco', synthetic_set, '--json', other).exit_code == 0
    assert json.loads(out.read_text())['metrics'] == json.loads(other.read_text())['metrics']


def test_faster_backend(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip('faster_coco_eval', reason='the extra `faster` is not installed')
    out, other = tmp_path / 'own.json', tmp_path / 'other.json'
    assert evaluated(finished, '--json', out).exit_code == 0
    assert evaluated(finished, '--json', other, '--backend', 'faster').exit_code == 0
    one, two = (json.loads(path.read_text())['metrics'] for path in (out, other))
    assert one == pytest.approx(two, abs=1e-9)


def test_class_table(finished: Path) -> None:
    lines = evaluated(finished, '--classes').stdout.splitlines()
    table = lines[next(number for number, line in enumerate(lines) if line.startswith('class')) :]
    assert {line.split()[0] for line in table[1:]} == {'circle', 'square', 'triangle', 'star', 'cross', 'ring'}


def test_other_classes(finished: Path, synthetic_set: Path, tmp_path: Path) -> None:
    path = synthetic_set / 'annotations' / 'instances_val2017.json'
    changed = tmp_path / 'changed.json'
    changed.write_text(path.read_text().replace('"star"', '"moon"'))
    files = ('--images', synthetic_set / 'val2017', '--annotations', changed)
    assert 'only the detector has star, only the annotations have moon' in refused(finished, *files)
    document = json.loads(path.read_text())
    document['categories'].append({'id': 99, 'name': 'moon'})
    changed.write_text(json.dumps(document))
    assert 'has 6 classes, but the annotations have 7' in refused(finished, *files)


def test_a_checkpoint_of_other_classes(copied: Path) -> None:
    content = torch.load(copied / 'student.pth', weights_only=True)
    content['meta']['dataset_meta']['classes'] = ('a', 'b', 'c', 'd', 'e', 'f')
    torch.save(content, copied / 'student.pth')
    assert 'was trained on 6 classes (a, ...), but its config has 6 (circle, ...)' in refused(copied)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_that_holds_more_than_tensors(copied: Path, tmp_path: Path) -> None:
    """Nothing is unpickled unasked."""
    trace = tmp_path / 'trace'
    content = torch.load(copied / 'student.pth', weights_only=True)
    content['meta']['extra'] = Touch(trace)
    torch.save(content, copied / 'student.pth')
    assert 'holds more than tensors and plain values' in refused(copied)
    assert not trace.exists()
    assert evaluated(copied, '--trust-checkpoint').exit_code == 0
    assert trace.exists()


def test_another_scale(finished: Path, tmp_path: Path) -> None:
    found = []
    for scale in ('128x128', '64x64'):
        assert evaluated(finished, '--scale', scale, '--results', tmp_path / 'r.json').exit_code == 0
        found.append((tmp_path / 'r.json').read_text())
    assert found[1] != found[0]
    scale = main.make_context('mtpd-eval', ['run', '--scale', '1333x800']).params['scale']
    assert scale == (1333, 800)


def test_a_checkpoint_of_another_network(copied: Path) -> None:
    content = torch.load(copied / 'student.pth', weights_only=True)
    del content['state_dict']['backbone.conv1.weight']
    torch.save(content, copied / 'student.pth')
    assert '1 tensors are missing (backbone.conv1.weight)' in refused(copied)


def test_missing_files(finished: Path, copied: Path, synthetic_set: Path, tmp_path: Path) -> None:
    assert 'is neither a run nor a stage of a run' in refused(tmp_path)
    assert 'there is no such file' in refused(finished, '--checkpoint', tmp_path / 'none.pth')
    assert 'cannot read the annotation file' in refused(finished, '--coco', tmp_path)
    annotations = synthetic_set / 'annotations' / 'instances_val2017.json'
    files = ('--images', tmp_path, '--annotations', annotations)
    assert '8 of 8 images of instances_val2017.json are missing' in refused(finished, *files)
    (copied / 'student.pth').unlink()
    assert evaluated(copied, '--checkpoint', finished / 'student.pth').exit_code == 0
    assert f'the run has not finished; give a finished stage, such as {copied / "stage1"}' in refused(copied)
    assert 'add --checkpoint FILE' in refused('--model', finished / 'student_config.py')
    assert 'has no published weights' in refused('--model', 'my.py:build')
    assert 'timm has no detectors' in refused('--model', 'timm:resnet18')
    nowhere = tmp_path / 'no' / 'folder'
    (tmp_path / 'no').write_text('')
    for option in ('--json', '--results'):
        assert f'{option} {nowhere}: cannot be written' in refused(finished, option, nowhere)
    # Before the evaluation, not after it.
    refused(finished, '--json', nowhere, '--results', tmp_path / 'results.json')
    assert not (tmp_path / 'results.json').exists()


def test_a_run_that_has_not_finished(copied: Path, records: Records, tmp_path: Path) -> None:
    """Each refusal names what can be evaluated, as the command line takes it; else how to get something."""
    stage, out = copied / 'stage1', tmp_path / 'scores.json'
    best, newest = stage / 'best.pth', stage / 'epoch_3.pth'
    for path in (copied / 'student.pth', copied / 'student_config.py', stage / 'student.pth'):
        path.unlink()
    scores = [one['metrics'] for one in records(copied, 'evaluation')]
    wanted = max(scores, key=lambda metrics: metrics['box/AP'])
    title = f'best so far, epoch {1 + scores.index(wanted)}'
    assert refused(stage).endswith(f'has not finished; for its {title}, add --checkpoint {best}')
    assert refused(copied).endswith(f'has not finished; for the {title} of stage 1, give {stage} --checkpoint {best}')
    assert evaluated(stage, '--checkpoint', best, '--json', out).exit_code == 0
    assert json.loads(out.read_text())['metrics'] == pytest.approx(wanted, abs=1e-6)
    assert f'give the folder of the stage of {best}' in refused(copied, '--checkpoint', best)
    best.write_bytes(best.read_bytes()[:-60])
    assert f'checkpoint {best}: is damaged' in refused(stage)
    best.unlink()
    assert refused(stage).endswith(f'for its latest so far, epoch 3, add --checkpoint {newest}')
    newest.unlink()
    (stage / 'epoch_2.pth').unlink()
    for folder in (stage, copied):
        assert f'{folder}: has no student yet: the first is saved' in refused(folder)
        assert refused(folder).endswith('its mtpd-train command and --resume')
    (stage / 'diverged.jsonl').write_text('')
    assert 'its losses diverged before the first save; train again' in refused(stage)
    assert 'or the run has not reached it; wait for it' in refused(copied / 'stage2')


def test_an_empty_set(finished: Path, synthetic_set: Path, tmp_path: Path) -> None:
    document = json.loads((synthetic_set / 'annotations' / 'instances_val2017.json').read_text())
    document |= {'images': [], 'annotations': []}
    (tmp_path / 'empty.json').write_text(json.dumps(document))
    assert 'lists no images' in refused(finished, '--images', tmp_path, '--annotations', tmp_path / 'empty.json')


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['run', '--model', 'r50'],
        ['run', '--images', 'images'],
        ['run', '--coco', 'a', '--images', 'b', '--annotations', 'c'],
        ['run', '--backend', 'slower'],
        ['run', '--scale', '800'],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert 'Usage:' in result.stderr


def test_examples_are_accepted() -> None:
    for line in filter(None, (one.strip() for one in EXAMPLES.splitlines())):
        if line.startswith('mtpd-eval '):
            assert main.make_context('mtpd-eval', line.split()[1:]).params['device'] == 'auto'


@pytest.mark.real
def test_a_real_teacher(real_dir: Path, tmp_path: Path) -> None:
    """YOLOX-nano on 66 real images: the AP that was measured with mmdet's own loop."""
    teacher = real_dir / 'teachers' / 'yolox_nano_mmdet'
    model = ('--model', teacher.with_suffix('.py'), '--checkpoint', teacher.with_suffix('.pth'))
    out = tmp_path / 'scores.json'
    result = evaluated(*model, '--coco', real_dir / 'coco_mini', '--json', out)
    assert result.exit_code == 0, result.output
    metrics = json.loads(out.read_text())['metrics']
    assert (metrics['box/AP'], metrics['box/AP50']) == pytest.approx((0.306, 0.482), abs=2e-3)
