"""Each family end to end: extract, two stages, resume, evaluate, fidelity, report; its library loads the student."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import mtpd.cache
from mtpd.data.images import read_image
from mtpd.detectors.references import define_detector, read_definition
from mtpd.detectors.results import coco_results
from mtpd.detectors.samples import collate, make_sample
from mtpd.errors import InputError
from mtpd_extract.cache_tools.cli import main as cache_main
from mtpd_train.evaluator.cli import main as eval_main
from mtpd_train.report.cli import main as report_main
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.stage import build_stages
from mtpd_train.student import require_batches
from mtpd_train.training.step import loaded, step_losses

TORCHVISION = 'torchvision:fasterrcnn_mobilenet_v3_large_320_fpn'
TINY = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
LITE = 'torchvision:ssdlite320_mobilenet_v3_large'
DOCS = Path(__file__).resolve().parents[2] / 'docs' / 'families.md'
# Random networks are sure of nothing, so they find nothing without this; and torchvision's are slow on a CPU.
FEW = {
    'box_score_thresh': 0.0,
    'box_detections_per_img': 10,
    'rpn_post_nms_top_n_train': 50,
    'box_batch_size_per_image': 32,
}


@dataclass(frozen=True)
class Family:
    """A detector that learns from another of its family."""

    student: str
    teacher: str
    checkpoint: Path | None  # of the teacher
    scale: str
    model: dict[str, Any]
    files: set[str]  # in the folder of a stage


@pytest.fixture(scope='module', params=['torchvision', 'hf', 'file'])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    files = {'student.pth', 'best.pth', 'epoch_1.pth', 'student.json'}
    if request.param == 'torchvision':
        definition = define_detector(TORCHVISION)
        torch.manual_seed(0)
        detector = definition.build(definition.preprocessing()[0], num_classes=6, with_levels=False)
        # Statistics of noise: a random MobileNet's maps would be all but constant.
        for one in detector.module.modules():
            if isinstance(one, torch.nn.BatchNorm2d):
                one.momentum = 1.0
        detector.maps(torch.randn(4, 3, 128, 128))
        meta = {'dataset_meta': {'classes': [f'class {number}' for number in range(6)]}}
        torch.save({'state_dict': detector.module.state_dict(), 'meta': meta}, folder / 'teacher.pth')
        return Family(TORCHVISION, TORCHVISION, folder / 'teacher.pth', '96x96', FEW, files)
    if request.param == 'hf':
        pytest.importorskip('transformers')
        from tiny_hf import make_folder

        published = f'hf:{make_folder(folder / "published", "rt_detr_v2")}'
        return Family(published, published, None, '96x96', {}, files | {'hf'})
    (folder / 'mine.py').write_text(re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.DOTALL)[-1])
    mine = f'{folder / "mine.py"}:build'
    return Family(mine, mine, None, '128x128', {'channels': 8}, files)


@dataclass(frozen=True)
class Finished:
    family: Family
    cache: Path
    stages: list[Path]
    run: Path


@pytest.fixture(scope='module')
def finished(
    family: Family,
    tmp_path_factory: pytest.TempPathFactory,
    synthetic_set: Path,
    extract: Callable[..., Any],
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
) -> Finished:
    folder = tmp_path_factory.mktemp('families')
    checkpoint = () if family.checkpoint is None else ('--checkpoint', family.checkpoint)
    options = ('--scale', family.scale, '--codec', 'fp16')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_HOME', str(folder))
        extract('--teacher', family.teacher, *checkpoint, '--coco', synthetic_set, '--out', folder / 'cache', *options)
    stages = [
        write_stage(
            folder / f'{loss}.yaml',
            student=family.student,
            model=family.model,
            cache=folder / 'cache',
            distill=[{'loss': loss, 'weight': 0.1}],
            optim={'lr': 1e-4, 'backbone_lr': 0.5, 'norm_decay': False},
        )
        for loss in ('masked_mse', 'cosine')
    ]
    train(*stages, '--out', folder / 'run')
    return Finished(family, folder / 'cache', stages, folder / 'run')


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / 'student.pth', weights_only=True)['state_dict']
    return state


def test_its_stages_are_there(finished: Finished, records: Callable[..., Any]) -> None:
    assert {path.name for path in (finished.run / 'stage2').iterdir()} == finished.family.files
    trained = records(finished.run, 'train')
    levels = {level.name for level in mtpd.cache.open(finished.cache).levels}
    assert trained[0]['losses'].keys() >= {f'distill/masked_mse/{level}' for level in levels}
    assert all(value > 0 for name, value in trained[1]['losses'].items() if name.startswith('distill/cosine'))
    # Of the teacher only what lies outside the backbone is stored.
    stored = mtpd.cache.open(finished.cache).teacher_weights()
    assert stored
    assert not [name for name in stored if name.startswith(('backbone.body', 'backbone.0', 'model.backbone'))]
    first, second = (weights_of(finished.run / f'stage{number}') for number in (1, 2))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_was_stopped_ends_the_same(
    finished: Finished, train: Callable[..., Any], train_error: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def pressed(*arguments: Any, **options: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return coco_results(*arguments, **options)

        patch.setattr('mtpd_train.evaluation.coco_results', pressed)
        patch.setattr('mtpd_train.run.try_predictions', lambda *_: None)
        assert 'stopped in epoch 1 of stage 1' in train_error(*finished.stages, '--out', tmp_path / 'run', code=130)
    train(*finished.stages, '--out', tmp_path / 'run', '--resume')
    whole, resumed = weights_of(finished.run), weights_of(tmp_path / 'run')
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_finished_run_that_is_resumed_stays(finished: Finished, train: Callable[..., Any], tmp_path: Path) -> None:
    """The student's own files too, which are written from a network."""
    run = tmp_path / 'run'
    shutil.copytree(finished.run, run)
    train(*finished.stages, '--out', run, '--resume')
    for path in (one for one in finished.run.rglob('*') if one.is_file() and one.suffix in ('.pth', '.safetensors')):
        assert path.read_bytes() == (run / path.relative_to(finished.run)).read_bytes(), path


def test_it_is_evaluated_again(finished: Finished, records: Callable[..., Any], tmp_path: Path) -> None:
    result = CliRunner().invoke(eval_main, [str(finished.run), '--json', str(tmp_path / 'found.json')])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / 'found.json').read_text())['metrics']
    recorded = records(finished.run, 'evaluation')[-1]['metrics']
    assert found == pytest.approx(recorded, abs=1e-6)


def test_a_report_and_a_dry_run(finished: Finished, train: Callable[..., Any], tmp_path: Path) -> None:
    assert 'masked_mse' in train(*finished.stages, '--out', tmp_path / 'no', '--dry-run').output
    result = CliRunner().invoke(report_main, ['page', str(finished.run), '--out', str(tmp_path / 'page.html')])
    assert result.exit_code == 0, result.output
    assert 'has no student' not in (tmp_path / 'page.html').read_text()


def test_fidelity_with_the_ap_of_its_head(finished: Finished, synthetic_set: Path, tmp_path: Path) -> None:
    """More classes or fewer than the annotations have are refused before; what random weights find is as good."""
    family = finished.family
    arguments = ['fidelity', str(finished.cache), '--coco', str(synthetic_set), '--num-images', '2', '--json']
    if family.checkpoint is not None:
        arguments += ['--checkpoint', str(family.checkpoint)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TORCH_HOME', str(tmp_path))
        result = CliRunner().invoke(cache_main, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found['ap']['live'] == pytest.approx(found['ap']['stored'], abs=2.0)
    assert all(one['mean_error'] < 1e-4 for one in found['views'])


def test_its_library_loads_the_student(finished: Finished, synthetic_set: Path) -> None:
    """And finds the same: scores of the same objects on an image of the set."""
    definition = read_definition(finished.run)
    assert definition is not None
    preprocessing, _ = definition.preprocessing()
    detector = definition.build(preprocessing)
    detector.module.load_state_dict(weights_of(finished.run))
    detector.module.eval()
    path = sorted((synthetic_set / 'val2017').iterdir())[0]
    sample = make_sample(read_image(path), image_id=1, geometry=preprocessing.geometry, view='plain')
    inputs = collate([sample], preprocessing=preprocessing, device=torch.device('cpu'))
    (found,) = detector.predict(inputs, [sample])
    assert len(found.scores)
    if finished.family.student == TORCHVISION:
        scores, boxes = of_torchvision(finished, inputs[:, :, : sample.resized[0], : sample.resized[1]])
    elif finished.family.student.startswith('hf:'):
        scores, boxes = of_transformers(finished.run, inputs)
    else:
        return
    torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-5)
    # From px of the input to px of the original image.
    factors = [sample.original[1] / sample.resized[1], sample.original[0] / sample.resized[0]]
    torch.testing.assert_close(found.boxes, boxes * boxes.new_tensor(factors).repeat(2), rtol=1e-3, atol=1e-2)


def of_torchvision(finished: Finished, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as build

    height, width = inputs.shape[2:]
    # Of inputs that are ready its transform changes nothing.
    ready = {
        'image_mean': [0.0] * 3,
        'image_std': [1.0] * 3,
        'min_size': min(height, width),
        'max_size': max(height, width),
    }
    model = build(weights=None, weights_backbone=None, num_classes=7, **finished.family.model, **ready)
    keys = model.load_state_dict(weights_of(finished.run), strict=False)
    assert not keys.unexpected_keys
    assert all(name.endswith('num_batches_tracked') for name in keys.missing_keys)
    # As the documentation does it.
    (snippet,) = re.findall(r'```python\n(import json\n.*?)```', DOCS.read_text(), re.DOTALL)
    variables: dict[str, Any] = {}
    exec(snippet.replace('runs/mtpd', str(finished.run)), variables)
    for name, value in variables['model'].state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    (found,) = model.eval()(list(inputs))
    return found['scores'].detach(), found['boxes'].detach()


def of_transformers(run: Path, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    transformers: Any = importlib.import_module('transformers')
    model = transformers.AutoModelForObjectDetection.from_pretrained(run / 'hf').eval()
    with torch.no_grad():
        outputs = model(inputs)
    processor = transformers.AutoImageProcessor.from_pretrained(run / 'hf')
    sizes = [tuple(inputs.shape[2:])]
    (found,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    return found['scores'], found['boxes']


def test_what_only_mmdet_has_is_refused(
    finished: Finished, write_stage: Callable[..., Path], train_error: Callable[..., str], tmp_path: Path
) -> None:
    base = {'student': finished.family.student, 'model': finished.family.model, 'cache': finished.cache}
    cases: list[tuple[dict[str, Any], str]] = [
        ({'init': {'backbone': 'none', 'inherit': ['neck']}}, 'does not inherit'),
        ({'distill': [{'loss': 'tar_head'}]}, 'tar_head'),
    ]
    for number, (changes, message) in enumerate(cases):
        stage = write_stage(tmp_path / f'{number}.yaml', **base | {'distill': [{'loss': 'masked_mse'}]} | changes)
        assert message in train_error(stage, '--out', tmp_path / 'run')


@pytest.mark.parametrize(('batch_size', 'wanted'), [(1, 3), (2, 3), (11, 12)])
def test_batches_of_one_image(
    batch_size: int,
    wanted: int,
    write_stage: Callable[..., Path],
    train_error: Callable[..., str],
    tmp_path: Path,
) -> None:
    """SSDLite's norms need two; 23 images have objects."""
    stage = write_stage(tmp_path / 'stage.yaml', student=LITE, data={'batch_size': batch_size, 'val': None})
    error = train_error(stage, '--out', tmp_path / 'run', '--dry-run')
    assert f'has 1, but {LITE} needs 2 or more; set it to {wanted}' in error


def test_a_file_that_was_changed_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run folder; and one that has a relative place."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / 'mine.py'
    source.write_text(re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.DOTALL)[-1])
    definition = define_detector(f'{source}:build', {'channels': 8})
    detector = definition.build(definition.preprocessing()[0], num_classes=2)
    name, text = definition.description(detector, classes=('a', 'b'), evaluated_on=None)
    (tmp_path / name).write_text(text)
    found = read_definition(tmp_path)
    assert found is not None
    assert found.sha256 == definition.sha256
    source.write_text(source.read_text() + 'raise SystemExit\n')
    with pytest.raises(InputError, match='is not the file that the student was trained with'):
        read_definition(tmp_path)
    (tmp_path / name).write_text(text.replace(str(source), 'mine.py'))
    with pytest.raises(InputError, match='is not there'):
        read_definition(tmp_path)


def built_again(folder: Path) -> None:
    definition = read_definition(folder)
    assert definition is not None
    definition.build(definition.preprocessing()[0])


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('"scale": [\n', '"scale": [1000000000,\n', 'geometry'),
        ('"std": [\n   255.0', '"std": [\n   0.0', 'std above 0'),
        (':build', ':', 'not there|does not define'),
        ('"a",', '"a", 3,', 'classes'),
        ('/mine.py:build', ':build', 'is not a family|not there'),
        ('"detector": "', '"detector": "timm:', 'no such file|not there'),
    ],
)
def test_a_description_that_was_changed(old: str, new: str, message: str, tmp_path: Path) -> None:
    source = tmp_path / 'mine.py'
    source.write_text(re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.DOTALL)[-1])
    definition = define_detector(f'{source}:build')
    detector = definition.build(definition.preprocessing()[0], num_classes=2)
    name, text = definition.description(detector, classes=('a', 'b'), evaluated_on=None)
    assert old in text, text
    (tmp_path / name).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=message):
        built_again(tmp_path)


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        (
            "'loss_box': nn.functional.l1_loss(",
            "'loss_box': torch.sub(",
            'one number',
        ),
        ('self.module.neck(self.module.backbone(images))]', '1 / 0]', 'ZeroDivisionError'),
        ("Mine('mine', net", "Mine('mine', None", 'its module is a NoneType'),
        ('return Mine(', 'return repr, (', 'returned a tuple'),
    ],
)
def test_mistakes_in_a_file(
    old: str,
    new: str,
    message: str,
    write_stage: Callable[..., Path],
    train_error: Callable[..., str],
    tmp_path: Path,
) -> None:
    text = re.findall(r'```python\n(.*?)```', DOCS.read_text(), re.DOTALL)[-1]
    assert old in text
    (tmp_path / 'mine.py').write_text(text.replace(old, new))
    stage = write_stage(tmp_path / 'stage.yaml', student=f'{tmp_path / "mine.py"}:build', data={'val': None})
    assert re.search(message, train_error(stage, '--out', tmp_path / 'run'))


def test_batches_that_processes_divide() -> None:
    """Of 9 images in batches of 4 the last has one; of 8, each of two processes has two."""
    definition = define_detector(LITE)
    detector = definition.build(definition.preprocessing()[0], num_classes=2, with_levels=False)
    require_batches(detector, num_images=8, batch_size=4, num_processes=2)
    with pytest.raises(InputError, match=r'has 1 in each of 2 processes, but .* set it to 4'):
        require_batches(detector, num_images=12, batch_size=3, num_processes=2)


NOT_IMPORTED = """
import sys
from mtpd_train.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(sorted({'mmdet', 'mmcv', 'mmengine', 'timm', 'transformers'} & set(sys.modules)))
"""


def test_no_other_family_is_imported(finished: Finished, write_stage: Callable[..., Path], tmp_path: Path) -> None:
    command = [sys.executable, '-c', NOT_IMPORTED, *map(str, finished.stages[:1]), '--out', str(tmp_path / 'run')]
    result = subprocess.run([*command, '--dry-run'], capture_output=True, text=True, check=True)
    own = ['transformers'] if finished.family.student.startswith('hf:') else []
    assert result.stdout.splitlines()[-1] == str(own)


RECIPES = sorted((Path(__file__).resolve().parents[2] / 'configs' / 'families').glob('*.yaml'))


@pytest.mark.slow
@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_a_recipe(
    path: Path,
    synthetic_set: Path,
    extract: Callable[..., Any],
    random_weights: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step with a small teacher of the same kind; transformers' student is a small one as well."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (settings,) = load_stages([path])
    student, teacher, checkpoint = settings.student, str(TINY), Path()
    if student.startswith('hf:'):
        timm = pytest.importorskip('timm')
        from tiny_hf import make_folder

        student, teacher = f'hf:{make_folder(tmp_path / "published", "rt_detr_v2")}', 'timm:vit_tiny_patch16_224'
        checkpoint = tmp_path / 'teacher.pth'
        torch.save(timm.create_model('vit_tiny_patch16_224').state_dict(), checkpoint)
    else:
        checkpoint = random_weights(TINY)
    size = ('--scale', '128x128', '--no-keep-ratio') if student.startswith('hf:') else ('--scale', '128x128')
    source = ('--teacher', teacher, '--checkpoint', checkpoint, '--coco', synthetic_set, '--codec', 'fp16')
    extract(*source, '--out', tmp_path / 'cache', *size)
    changes = [f'student={student}', f'cache={tmp_path / "cache"}', 'init={backbone: none}', 'data.batch_size=2',
               f'data.coco={synthetic_set}', 'data.workers=0', 'data.val=null', 'optim.warmup_iters=0']  # fmt: skip
    (stage,) = build_stages(load_stages([path], overrides=changes))
    stage.student.module.train()
    samples, ahead = next(loaded(stage, stage.epoch_batches(0)))
    losses = step_losses(stage, samples, ahead)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    distilled = {name.split('/')[1]: value.item() for name, value in losses.items() if name.startswith('distill/')}
    assert distilled.keys() == {entry.loss for entry in settings.distill}
    assert all(value > 0 for value in distilled.values())
    gradient = stage.student.module.get_submodule(stage.student.backbone).parameters()
    assert any(one.grad is not None and bool(one.grad.any()) for one in gradient)
