"""Trains students of the other families for two steps, alone and from a cache, and loads many kinds of timm's teachers.

    MTPD_STRESS_ZOO=all python -m pytest tests/stress/test_families.py -rx -o faulthandler_timeout=600
    MTPD_STRESS_ZOO=ssd300_vgg16,d_fine,resnet18 python -m pytest tests/stress/test_families.py

A student works when plain and distilled training end, `mtpd-eval` finds what training's own evaluation found, and its
own library loads what training left and finds the same boxes, scores and masks in the images. A teacher works when it
has the levels of the table, and finite maps that depend on the image. Images are small and weights random. The last
line counts those that work as passed, and as xfailed the teachers that are refused by one line with the text of the
table.
"""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model

from mtpd.data.images import read_image
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.of_hf.model_config import MODELS
from mtpd.detectors.of_torchvision.networks import KEYPOINTS, SSD300, SSDLITE, STUDENTS
from mtpd.detectors.references import define_detector, load_teacher, read_definition
from mtpd.detectors.samples import Sample, collate, make_sample
from mtpd.errors import MtpdError
from mtpd_extract.cli import main as mtpd_extract
from mtpd_train.cli import main as mtpd_train
from mtpd_train.evaluator.cli import main as mtpd_eval
from stress.test_students import (
    TOLERANCE,
    invoke,
    make_cache,
    make_set,
    records_of,
    require_distilled,
    require_done,
    require_equal,
)
from stress.zoo import Family, selected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings('default')]
CPU = torch.device('cpu')
CLASSES = 2
Records = list[dict[str, Any]]

# Untrained detectors are sure of nothing, and slow on a CPU with all that they propose.
ONE_STAGE: Mapping[str, Any] = {'score_thresh': 0.0, 'detections_per_img': 20, 'topk_candidates': 100}
TWO_STAGE: Mapping[str, Any] = {
    'box_score_thresh': 0.0,
    'box_detections_per_img': 20,
    'rpn_score_thresh': 0.0,
    'rpn_post_nms_top_n_train': 50,
    'rpn_post_nms_top_n_test': 50,
}
LONG, SHORT = 160, 112  # px
HF_SIDE = 128  # px, with which transformers resizes nothing of the larger images


@dataclass(frozen=True)
class Backbone:
    """One teacher of timm.

    Attributes:
        levels: names of the levels of its maps.
        scale: width and height of its images in px; None: 128 x 96, padded as it needs.
        refusal: what the message says when it is refused; None: it must work.
    """

    levels: tuple[str, ...] = ('p2', 'p3', 'p4', 'p5')
    scale: tuple[int, int] | None = None
    refusal: str | None = None


_STAGES = (
    'resnet18', 'convnext_atto', 'efficientnet_b0', 'mobilenetv3_small_050', 'regnetx_002', 'densenet121', 'vgg11',
    'swin_tiny_patch4_window7_224', 'fastvit_t8', 'repvit_m0_9', 'edgenext_xx_small', 'pvt_v2_b0', 'nextvit_small',
    'hrnet_w18_small',
)  # fmt: skip
_TOKENS = (
    'vit_tiny_patch16_224', 'deit_tiny_patch16_224', 'vit_small_patch16_dinov3', 'vit_base_patch16_siglip_224',
    'xcit_nano_12_p16_224',
)  # fmt: skip
TEACHERS: Mapping[str, Backbone] = {
    **dict.fromkeys(_STAGES, Backbone()),
    **dict.fromkeys(_TOKENS, Backbone(('p4',))),
    **dict.fromkeys(('vit_small_patch14_dinov2', 'eva02_tiny_patch14_224'), Backbone(('s14',))),
    **dict.fromkeys(('beit_base_patch16_224', 'mixer_b16_224'), Backbone(('p4',), scale=(224, 224))),
    **dict.fromkeys(('maxvit_tiny_tf_224', 'hiera_tiny_224'), Backbone(scale=(224, 224))),
    **dict.fromkeys(('inception_v3', 'crossvit_tiny_240'), Backbone(refusal='has no single stride')),
    'coat_tiny': Backbone(refusal="doesn't match model"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, of which only small files stay: weights take up to 1 GB."""
    yield tmp_path
    for path in tmp_path.rglob('*'):
        if path.is_file() and path.stat().st_size > 2**20:
            path.unlink()


@pytest.fixture(scope='module')
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the data set of all students."""
    return tmp_path_factory.mktemp('families')


@pytest.mark.parametrize('name', selected(STUDENTS, 'fasterrcnn_mobilenet_v3_large_320_fpn', SSDLITE))
def test_torchvision_student(name: str, shared: Path, folder: Path) -> None:
    """A network with random weights teaches another of its kind; with its backbone, the student freezes layers."""
    coco, weights, cache = make_set(shared, num_classes=CLASSES), folder / 'teacher.pth', folder / 'cache'
    is_ssd, reference = name in (SSDLITE, SSD300), f'torchvision:{name}'
    model = dict(TWO_STAGE if 'rcnn' in name else ONE_STAGE)
    model |= {} if is_ssd else {'min_size': SHORT, 'max_size': LONG}
    make_torchvision_weights(name, weights)
    options = ['--coco', coco, '--out', cache, '--codec', 'fp16', '--views', 'plain', '--device', 'cpu']
    options += [] if is_ssd else ['--scale', f'{LONG}x{SHORT}']
    require_done(invoke(mtpd_extract, '--teacher', reference, '--checkpoint', weights, *options))
    weights = weights.rename(folder / 'start.pth')
    distilled = {'init': {'backbone': str(weights)}, 'cache': str(cache), 'distill': [{'loss': 'masked_mse'}]}
    for run, changes in (folder / 'plain', {}), (folder / 'taught', distilled):
        train(run, coco, student=reference, model=model, **changes)
        assert compare(run, coco, partial(of_torchvision, run, name, model))
    require_distilled(folder / 'taught')


@pytest.mark.parametrize('name', selected([KEYPOINTS]))
def test_torchvision_key_points(name: str, folder: Path) -> None:
    """A teacher alone."""
    with pytest.raises(MtpdError, match='can be a teacher'):
        define_detector(f'torchvision:{name}')
    torch.manual_seed(0)
    torch.save(get_model(name, weights=None, weights_backbone=None).state_dict(), folder / 'weights.pth')
    options = InputOptions(scale=(LONG, SHORT))
    teacher = load_teacher(f'torchvision:{name}', checkpoint=folder / 'weights.pth', options=options, device=CPU)
    assert [level.name for level in teacher.levels] == ['p2', 'p3', 'p4', 'p5', 'p6']


@pytest.mark.parametrize('name', selected(list(MODELS), 'd_fine'))
def test_hf_student(name: str, shared: Path, folder: Path) -> None:
    """A RetinaNet of mmdet teaches a small network."""
    pytest.importorskip('transformers')
    from tiny_hf import make_folder

    coco = make_set(shared, num_classes=CLASSES)
    cache = make_cache(shared, coco, Family('', side=HF_SIDE, num_classes=CLASSES, keep_ratio=False))
    student = f'hf:{make_folder(folder / "published", name)}'
    geometry = {'scale': [HF_SIDE] * 2, 'keep_ratio': False, 'pad_divisor': 32}
    plain, taught = folder / 'plain', folder / 'taught'
    train(plain, coco, student=student, data={'geometry': geometry})
    distilled = {'cache': str(cache), 'distill': [{'loss': 'masked_mse'}]}
    train(taught, coco, student=student, init={'backbone': 'pretrained'}, **distilled)
    for run in (plain, taught):
        assert compare(run, coco, partial(of_transformers, run))
    require_distilled(taught)


@pytest.mark.parametrize('name', selected(list(TEACHERS), 'resnet18', 'vit_tiny_patch16_224'))
def test_timm_teacher(name: str, folder: Path) -> None:
    timm, wanted, path = pytest.importorskip('timm'), TEACHERS[name], folder / 'weights.pth'
    if not timm.is_model(name):
        pytest.skip(f'timm {timm.__version__} has no {name}')
    torch.manual_seed(0)
    torch.save(timm.create_model(name).state_dict(), path)
    scale = wanted.scale or (128, 96)
    # Those of one size get just that.
    options = InputOptions(scale=scale, keep_ratio=None if wanted.scale is None else False)
    try:
        teacher = load_teacher(f'timm:{name}', checkpoint=path, options=options, device=CPU)
    except MtpdError as error:
        line = str(error)
        assert '\n' not in line, line
        assert wanted.refusal is not None, line
        assert wanted.refusal in line, line
        pytest.xfail(f'refused: {line}')
    assert wanted.refusal is None, f'expected a refusal with {wanted.refusal!r}, but it works'
    assert tuple(level.name for level in teacher.levels) == wanted.levels
    size = teacher.preprocessing.geometry.padded((scale[1], scale[0]))
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    maps = teacher.maps(images)
    for level in teacher.levels:
        values = maps[level.name]
        assert values.shape == (2, level.channels, *level.grid(*size)), level
        assert values.isfinite().all(), level
        assert not torch.equal(values[0], values[1]), level


def make_torchvision_weights(name: str, path: Path) -> None:
    """Random weights whose norms have the statistics of noise, without which deep maps vanish or overflow."""
    definition = define_detector(f'torchvision:{name}')
    torch.manual_seed(0)
    detector = definition.build(definition.preprocessing()[0], num_classes=CLASSES, with_levels=False)
    for one in detector.module.modules():
        if isinstance(one, torch.nn.BatchNorm2d):
            one.momentum = 1.0
    side = 300 if name == SSD300 else 128
    with torch.no_grad():
        detector.maps(torch.randn(4, 3, side, side))
    meta = {'dataset_meta': {'classes': [f'class{number}' for number in range(CLASSES)]}}
    torch.save({'state_dict': detector.module.state_dict(), 'meta': meta}, path)


def train(run: Path, coco: Path, **changes: Any) -> None:
    stage: dict[str, Any] = {
        'init': {'backbone': 'none'},
        'data': {'coco': str(coco), 'batch_size': 2, 'workers': 0, 'flip': 0.0} | changes.pop('data', {}),
        'optim': {'type': 'adamw', 'lr': 1e-5, 'epochs': 1, 'grad_clip': 1.0},
    }
    path = run.with_suffix('.yaml')
    path.write_text(json.dumps(stage | changes))
    require_done(invoke(mtpd_train, path, '--out', run, '--device', 'cpu', '-v'))
    assert not any('not_finite' in record for record in records_of(run)), 'a loss was not finite'


def compare(run: Path, coco: Path, found_in: Callable[[Path], Records]) -> int:
    """Compares the student as trained, as mtpd-eval loads it, and in its library; gives the number of detections."""
    results, numbers = run / 'results.json', run / 'numbers.json'
    options = ['--results', results, '--json', numbers, '--batch-size', 1, '--workers', 0, '--device', 'cpu', '-v']
    require_done(invoke(mtpd_eval, run, *options))
    trained = [record['metrics'] for record in records_of(run) if 'metrics' in record][-1]
    assert json.loads(numbers.read_text())['metrics'] == pytest.approx(trained, abs=TOLERANCE)
    ours = json.loads(results.read_text())
    for image in json.loads((coco / 'annotations' / 'instances_val2017.json').read_text())['images']:
        theirs = found_in(coco / 'val2017' / image['file_name'])
        require_equal([one for one in ours if one['image_id'] == image['id']], theirs, image_id=image['id'])
    return len(ours)


def of_torchvision(run: Path, name: str, model: Mapping[str, Any], image: Path) -> Records:
    """What torchvision's own model finds in an image."""
    own = get_model(name, weights=None, weights_backbone=None, num_classes=CLASSES + 1, **model)
    state = torch.load(run / 'student.pth', weights_only=True)['state_dict']
    keys = own.load_state_dict(state, strict=False)
    assert not keys.unexpected_keys
    assert all(key.endswith('num_batches_tracked') for key in keys.missing_keys)
    pixels = read_image(image)
    _, inputs = inputs_of(run, pixels)
    make_batch = own.transform.batch_images

    def checked(*arguments: Any, **options: Any) -> Tensor:
        """In the place of its own, which differ in their last bits: random networks make much of these."""
        assert (make_batch(*arguments, **options) - inputs).abs().max() <= 1e-5 * inputs.abs().max()
        return inputs

    own.transform.batch_images = checked
    with torch.no_grad():
        (found,) = own.eval()([torch.from_numpy(pixels[..., ::-1].copy()).permute(2, 0, 1) / 255])
    # 0 is the background, which heads with a sigmoid may find.
    kept = found['labels'] > 0
    records = records_from(*(found[key][kept] for key in ('boxes', 'scores', 'labels')))
    for record, mask in zip(records, found['masks'][kept] if 'masks' in found else [], strict=False):
        record['mask'] = (mask[0] > 0.5).numpy()
    return records


def of_transformers(run: Path, image: Path) -> Records:
    """What the model of `from_pretrained` finds in an image; its own processor resizes in another way than mtpd."""
    transformers: Any = importlib.import_module('transformers')
    own = transformers.AutoModelForObjectDetection.from_pretrained(run / 'hf').eval()
    processor = transformers.AutoImageProcessor.from_pretrained(run / 'hf')
    pixels = read_image(image)
    sample, inputs = inputs_of(run, pixels)
    if sample.resized == sample.original:
        torch.testing.assert_close(processor(pixels[..., ::-1].copy(), return_tensors='pt')['pixel_values'], inputs)
    with torch.no_grad():
        outputs = own(inputs)
    (found,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[sample.original])
    return records_from(found['boxes'], found['scores'], found['labels'] + 1)


def inputs_of(run: Path, pixels: Any) -> tuple[Sample, Tensor]:
    """An image as mtpd-eval gives it to the student of a run."""
    definition = read_definition(run)
    assert definition is not None
    preprocessing, _ = definition.preprocessing()
    sample = make_sample(pixels, image_id=1, geometry=preprocessing.geometry, view='plain')
    return sample, collate([sample], preprocessing=preprocessing, device=CPU)


def records_from(boxes: Tensor, scores: Tensor, labels: Tensor) -> Records:
    """As COCO's results, whose categories are numbered from 1."""
    found = zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    return [
        {'category_id': label, 'score': score, 'bbox': [x1, y1, x2 - x1, y2 - y1]}
        for (x1, y1, x2, y2), score, label in found
    ]
