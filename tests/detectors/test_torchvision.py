"""Detectors of torchvision as students and teachers, with random weights, against torchvision itself."""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_builder
from torchvision.ops import FrozenBatchNorm2d

from mtpd.detectors.checkpoint import load_into
from mtpd.detectors.detector import BACKBONE, HEAD, PARTS, Detections
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.of_torchvision import networks
from mtpd.detectors.of_torchvision.detector import TorchvisionDetector, detector_class
from mtpd.detectors.of_torchvision.family import TorchvisionDefinition
from mtpd.detectors.references import define_detector, load_teacher, read_definition
from mtpd.detectors.samples import Instance, Sample, collate, make_sample
from mtpd.detectors.teachers import Teacher
from mtpd.errors import InputError, UnavailableError
from mtpd.geometry import Geometry

CPU = torch.device('cpu')
MOBILE, LITE = 'fasterrcnn_mobilenet_v3_large_320_fpn', networks.SSDLITE
CLASSES = ('cat', 'dog', 'cow')
SMALL = {'min_size': 128, 'max_size': 192}
# Random networks are sure of nothing: without a threshold there is something to compare.
CHANGES: dict[str, dict[str, Any]] = {
    'retinanet_resnet50_fpn': SMALL | {'score_thresh': 0.0},
    'fcos_resnet50_fpn': SMALL | {'score_thresh': 0.0},
    'maskrcnn_resnet50_fpn': SMALL | {'box_score_thresh': 0.0, 'box_detections_per_img': 20},
    MOBILE: {'box_score_thresh': 0.0, 'rpn_score_thresh': 0.0},
    LITE: {'score_thresh': 0.0},
}


def define(name: str, changes: dict[str, Any] | None = None) -> TorchvisionDefinition:
    found = define_detector(f'torchvision:{name}', CHANGES.get(name, {}) if changes is None else changes)
    assert isinstance(found, TorchvisionDefinition)
    return found


def build(name: str, *, num_classes: int | None = len(CLASSES), **options: Any) -> TorchvisionDetector:
    torch.manual_seed(0)
    definition = define(name)
    detector = definition.build(definition.preprocessing()[0], num_classes=num_classes, **options)
    # Norms that do nothing let numbers grow without end in a network that was not trained.
    for one in detector.module.modules():
        if isinstance(one, FrozenBatchNorm2d | nn.BatchNorm2d) and 'resnet' in name:
            one.running_var.fill_(4.0)  # type: ignore[union-attr]
    # Their class layers begin with scores that are all but equal, whose order is left to chance.
    for key, value in detector.module.named_parameters():
        if key.endswith('cls_logits.weight'):
            value.data *= 30
    return detector


def own_of(detector: TorchvisionDetector, **options: Any) -> Any:
    """torchvision's own model with the same weights, and its own transform."""
    name = detector.network
    own = get_model(
        name, weights=None, weights_backbone=None, num_classes=detector.outputs[-1] + 1, **CHANGES.get(name, {})
    )
    # What frozen norms lack are counters, which nothing uses.
    keys = own.load_state_dict(detector.module.state_dict(), strict=False)
    assert not keys.unexpected_keys
    assert all(key.endswith('num_batches_tracked') for key in keys.missing_keys)
    return own


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.interpolate(coarse, (height, width), mode='bicubic')[0].clamp(0, 1)
    return (smooth * 255).byte().permute(1, 2, 0).numpy()


def samples_of(detector: TorchvisionDetector, sizes: list[tuple[int, int]], **options: Any) -> list[Sample]:
    geometry = detector.preprocessing.geometry
    return [
        make_sample(photo(*size, seed=number), image_id=number, geometry=geometry, view='plain', **options)
        for number, size in enumerate(sizes)
    ]


def predict(detector: TorchvisionDetector, samples: list[Sample]) -> list[Detections]:
    detector.module.eval()
    return detector.predict(collate(samples, preprocessing=detector.preprocessing, device=CPU), samples)


@pytest.mark.parametrize(
    ('name', 'loaded'), [*((name, ()) for name in CHANGES), (MOBILE, PARTS), ('fcos_resnet50_fpn', PARTS)]
)
def test_it_predicts_what_torchvision_does(name: str, loaded: Any) -> None:
    detector = build(name, loaded=loaded, with_levels=False)
    own = own_of(detector).eval()
    sizes = [(240, 320), (301, 203)]
    found = predict(detector, samples_of(detector, sizes))
    inputs = [
        torch.from_numpy(photo(*size, seed=n)[..., ::-1].copy()).permute(2, 0, 1) / 255 for n, size in enumerate(sizes)
    ]
    with torch.no_grad():
        wanted = own(inputs)
    for one, other, size in zip(found, wanted, sizes, strict=True):
        kept = other['labels'] > 0
        assert len(one.scores) == kept.sum() > 5
        torch.testing.assert_close(one.scores, other['scores'][kept], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(one.boxes, other['boxes'][kept], rtol=1e-5, atol=1e-3)
        assert torch.equal(one.labels, other['labels'][kept] - 1)
        assert (one.masks is None) == ('masks' not in other)
        if one.masks is not None:
            assert one.masks.shape == (len(one.scores), *size)
            assert (one.masks != (other['masks'][kept][:, 0] > 0.5)).float().mean() < 1e-4


def test_sizes_are_those_of_torchvision() -> None:
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    generator = np.random.default_rng(0)
    for short, long in ((100, 150), (64, 64), (90, 60)):
        geometry = define(MOBILE, {'min_size': short, 'max_size': long}).preprocessing()[0].geometry
        transform = GeneralizedRCNNTransform(short, long, [0.0] * 3, [1.0] * 3).eval()
        for height, width in generator.integers(8, 701, (150, 2)).tolist():
            assert tuple(transform.resize(torch.zeros(3, height, width))[0].shape[1:]) == geometry.resized(
                (height, width)
            )


INSTANCES = [
    Instance((20, 30, 120, 150), 0),
    Instance((100, 40, 200, 200), 2),
    Instance((50, 60, 50, 90), 1),  # without area
    Instance((10, 10, 300, 200), 1, ignore=True),
]


@pytest.mark.parametrize(
    'name', [pytest.param(one, marks=pytest.mark.slow if 'mask' in one else ()) for one in CHANGES]
)
def test_losses_are_those_of_torchvision(name: str) -> None:
    detector = build(name, with_levels=False)
    sizes = [(240, 320), (240, 320), (200, 240)]
    samples = samples_of(detector, sizes, instances=INSTANCES, with_masks=detector.has_masks)
    samples[1] = samples_of(detector, sizes, instances=[], with_masks=detector.has_masks)[1]
    images = collate(samples, preprocessing=detector.preprocessing, device=CPU)
    own = own_of(detector)
    torch.manual_seed(1)
    losses = detector.losses(images, samples)

    targets = []
    for sample in samples:
        objects = sample.objects
        number = min(len(objects.boxes), 2)  # The third object has no area.
        target = {'boxes': objects.boxes[:number], 'labels': objects.labels[:number] + 1}
        targets.append(target | ({} if objects.masks is None else {'masks': objects.masks[:number]}))
    # torchvision's own transform, with nothing to do but to pad.
    own.transform.image_mean, own.transform.image_std, own.transform._skip_resize = [0.0] * 3, [1.0] * 3, True
    torch.manual_seed(1)
    wanted = own([one[:, : s.resized[0], : s.resized[1]] for one, s in zip(images, samples, strict=True)], targets)
    assert losses.keys() == wanted.keys()
    for key, value in losses.items():
        torch.testing.assert_close(value, wanted[key])
        assert value.isfinite()
    torch.autograd.backward([sum(losses.values(), torch.zeros(()))])


def test_images_without_objects() -> None:
    detector = build('maskrcnn_resnet50_fpn', with_levels=False)
    samples = samples_of(detector, [(128, 128)], instances=[], with_masks=True)
    losses = detector.losses(collate(samples, preprocessing=detector.preprocessing, device=CPU), samples)
    assert all(value.isfinite() for value in losses.values())
    assert losses['loss_mask'] == 0


def with_labels(detector: TorchvisionDetector, labels: list[int]) -> Detections:
    """What becomes of these labels of the network."""
    number = len(labels)
    result = {'boxes': torch.ones(number, 4), 'scores': torch.arange(number), 'labels': torch.tensor(labels)}
    (sample,) = samples_of(detector, [(160, 160)])
    with patch.object(type(detector.module), 'forward', lambda *_: [result]):
        return predict(detector, [sample])[0]


def test_labels() -> None:
    student = build(LITE, with_levels=False)
    assert (student.num_classes, student.outputs) == (3, (1, 2, 3))
    found = with_labels(student, [0, 3, 1])
    assert (found.labels.tolist(), found.scores.tolist()) == ([2, 0], [1, 2])
    # COCO's ids: 12 is a gap, 90 is the last class.
    published = build(LITE, num_classes=None, with_levels=False)
    classes = define(LITE).classes()
    assert classes is not None
    assert (published.num_classes, len(classes), len(set(classes))) == (80, 80, 80)
    found = with_labels(published, [0, 12, 13, 90])
    assert [classes[label] for label in found.labels] == ['stop sign', 'toothbrush']
    (sample,) = samples_of(published, [(160, 160)], instances=[Instance((20, 20, 90, 90), 79)])
    assert published._target(sample, CPU)['labels'].tolist() == [90]


@pytest.mark.parametrize(
    ('name', 'levels'),
    [
        ('retinanet_resnet50_fpn', ['p3', 'p4', 'p5', 'p6', 'p7']),
        (MOBILE, ['p5', 'p5_2', 'p6']),
        (LITE, ['p4', 'p5', 'p6', 'p7', 'p8', 'p9']),
    ],
)
def test_maps(name: str, levels: list[str]) -> None:
    detector = build(name)
    assert detector.module.training
    assert [level.name for level in detector.levels] == levels
    samples = samples_of(detector, [(240, 320)])
    with detector.captured_maps() as maps:
        (wanted,) = predict(detector, samples)
    images = collate(samples, preprocessing=detector.preprocessing, device=CPU)
    with torch.no_grad():
        for one, other in zip(detector.maps(images), maps, strict=True):
            assert torch.equal(one, other)
    with detector.given_maps(maps), patch.object(type(detector.module.backbone), 'forward', None):
        found = detector.predict(torch.zeros_like(images), samples)[0]
    assert torch.equal(found.boxes, wanted.boxes)
    assert torch.equal(found.scores, wanted.scores)
    assert torch.equal(predict(detector, samples)[0].scores, wanted.scores)


def test_anchors() -> None:
    detector = build('retinanet_resnet50_fpn')
    found = detector.base_anchors()
    assert list(found) == [8, 16, 32, 64, 128]
    from torchvision.models.detection.image_list import ImageList

    # A size that all strides divide.
    images = torch.zeros(1, 3, 256, 384)
    with torch.no_grad():
        maps = detector.maps(images)
    own: Any = detector.module.anchor_generator
    wanted = own(ImageList(images, [(256, 384)]), maps)[0]
    for (stride, anchors), values in zip(found.items(), maps, strict=True):
        rows, columns = values.shape[2:]
        y, x = torch.meshgrid(torch.arange(rows) * stride, torch.arange(columns) * stride, indexing='ij')
        cells = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) + anchors
        assert torch.equal(cells.reshape(-1, 4), wanted[: rows * columns * anchors.shape[0]])
        wanted = wanted[rows * columns * anchors.shape[0] :]
    assert set(build(MOBILE).base_anchors()) == {32, 64}
    for name in ('fcos_resnet50_fpn', LITE):
        with pytest.raises(InputError, match='fine_grained needs the anchors'):
            build(name).base_anchors()


def test_what_is_frozen() -> None:
    random, pretrained = (build(MOBILE, loaded=loaded, with_levels=False) for loaded in ((), {BACKBONE}))
    assert not any(isinstance(one, FrozenBatchNorm2d) for one in random.module.modules())
    assert all(one.requires_grad for one in random.module.parameters())
    frozen = [name for name, one in pretrained.module.named_parameters() if not one.requires_grad]
    assert frozen
    assert {pretrained.part_of(name) for name in frozen} == {BACKBONE}
    assert not any(isinstance(one, nn.BatchNorm2d) for one in pretrained.module.modules())
    assert pretrained.part_of('backbone.fpn.inner_blocks.0.0.weight') == HEAD
    # Each loads what the other has.
    load = random.module.load_state_dict(pretrained.module.state_dict(), strict=False)
    assert not load.unexpected_keys
    pretrained.module.load_state_dict(random.module.state_dict())
    all_layers = define(MOBILE, {'trainable_backbone_layers': 6}).build(
        pretrained.preprocessing, num_classes=3, loaded=PARTS, with_levels=False
    )
    assert all(one.requires_grad for one in all_layers.module.parameters())


@pytest.mark.parametrize('name', networks.TEACHERS)
def test_lists(name: str) -> None:
    builder = get_model_builder(name)
    assert (name in networks.WITHOUT_EPS) == ('overwrite_eps' in inspect.getsource(builder))
    tensors = networks.backbone_tensors(name, {'reduced_tail': False} if name == LITE else {})
    model = networks.empty_network(name, {'reduced_tail': False} if name == LITE else {})
    detector = detector_class(name)(name, model, define(MOBILE).preprocessing()[0])
    # The backbone's part is just what pretrained backbones have.
    assert tensors.keys() == {key for key in model.state_dict() if detector.part_of(key) == BACKBONE}
    model.get_submodule(detector.backbone)


def classifier(name: str, seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state: dict[str, Tensor] = get_model(name, weights=None).state_dict()
    return state


@pytest.mark.parametrize(
    ('name', 'of', 'pairs'),
    [
        (MOBILE, 'mobilenet_v3_large', [('backbone.body.0.0.weight', 'features.0.0.weight')]),
        (
            networks.SSD300,
            'vgg16',
            [
                ('backbone.features.21.weight', 'features.21.weight'),
                ('backbone.extra.0.5.weight', 'features.28.weight'),
            ],
        ),
        (LITE, 'mobilenet_v3_large', [('backbone.features.1.3.0.weight', 'features.16.0.weight')]),
    ],
)
def test_a_backbone_from_a_file(name: str, of: str, pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    if of == 'vgg16':
        state = {key: value for key, value in classifier(of).items() if key.startswith('features')}
    else:
        state = classifier(of)
    torch.save(state, tmp_path / 'classifier.pth')
    definition = define(name, {'reduced_tail': False} if name == LITE else {})
    preprocessing = definition.preprocessing()[0]
    detector = definition.build(preprocessing, num_classes=3, loaded={BACKBONE}, with_levels=False)
    assert 'backbone from' in definition.load_backbone(detector, str(tmp_path / 'classifier.pth'))
    found = detector.module.state_dict()
    for own, source in pairs:
        assert torch.equal(found[own], state[source])
    # The same by way of the detector's own file.
    torch.save({'state_dict': found}, tmp_path / 'detector.pth')
    other = definition.build(preprocessing, num_classes=5, loaded={BACKBONE}, with_levels=False)
    definition.load_backbone(other, str(tmp_path / 'detector.pth'))
    assert torch.equal(other.module.state_dict()[pairs[0][0]], state[pairs[0][1]])


def test_the_pretrained_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = define(MOBILE)
    detector = build(MOBILE, loaded={BACKBONE}, with_levels=False)
    state = classifier('mobilenet_v3_large')
    torch.save(state, tmp_path / 'file.pth')
    urls: list[str] = []

    def download(url: str, folder: Path, *, offline: str) -> Path:
        urls.append(url)
        return tmp_path / 'file.pth'

    monkeypatch.setattr('mtpd.detectors.of_torchvision.family.download', download)
    assert 'MobileNet_V3_Large_Weights.IMAGENET1K_V1' in definition.load_backbone(detector, 'pretrained')
    assert urls[0].endswith('mobilenet_v3_large-8738ca79.pth')
    assert torch.equal(detector.module.state_dict()['backbone.body.0.0.weight'], state['features.0.0.weight'])
    lite = define(LITE)
    with pytest.raises(InputError, match=r'set it to none, or reduced_tail of `model` to false'):
        lite.load_backbone(build(LITE, with_levels=False), 'pretrained')


def test_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError('no route')

    monkeypatch.setattr('urllib.request.urlopen', refuse)
    monkeypatch.setattr('torch.hub.get_dir', lambda: str(tmp_path))
    with pytest.raises(UnavailableError, match=r'no route.*set init.backbone to a local file, or to none'):
        define(MOBILE).load_backbone(build(MOBILE, with_levels=False), 'pretrained')
    with pytest.raises(UnavailableError, match=r'no route.*--checkpoint FILE'):
        load_teacher(f'torchvision:{MOBILE}', checkpoint=None, options=InputOptions(), device=CPU)
    # Building asks for nothing.
    build(MOBILE, loaded=PARTS, with_levels=False)


def test_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, path = 'retinanet_resnet50_fpn', tmp_path / 'file.pth'
    weights = networks.published_weights(name)
    torch.manual_seed(0)
    # Names of tensors as in the published file, which is older than those of today.
    state = {
        re.sub(r'(head\.\w+\.conv)\.(\d)\.0\.', lambda found: f'{found[1]}.{2 * int(found[2])}.', key): value
        for key, value in build(name, loaded=PARTS, num_classes=None, with_levels=False).module.state_dict().items()
    }
    assert 'head.regression_head.conv.6.bias' in state
    torch.save(state, path)

    def teacher() -> Teacher:
        options = InputOptions(scale=(128, 128))
        return load_teacher(f'torchvision:{name}', checkpoint=path, options=options, device=CPU)

    def eps(module: nn.Module) -> set[float]:
        return {one.eps for one in module.modules() if isinstance(one, FrozenBatchNorm2d)}

    assert eps(teacher().module) == {1e-5}
    digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(type(weights), 'url', f'https://x/y-{digits}.pth')
    found = teacher()
    assert (found.classes or ())[:2] == ('person', 'bicycle')
    assert eps(found.module) == {0.0}
    monkeypatch.setattr(type(weights), 'get_state_dict', lambda *_, **__: dict(state))
    own = get_model(name, weights=weights).eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        wanted = own.backbone(images)
    for one, other in zip(found.features(images), wanted.values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(
        found.module.state_dict()['head.regression_head.conv.3.0.bias'], own.head.regression_head.conv[3][0].bias
    )


def test_a_teacher(tmp_path: Path) -> None:
    student = build(MOBILE)
    meta = {'dataset_meta': {'classes': CLASSES}}
    torch.save({'state_dict': dict(student.module.state_dict()), 'meta': meta}, tmp_path / 'student.pth')
    reference, path = f'torchvision:{MOBILE}', tmp_path / 'student.pth'
    teacher = load_teacher(reference, checkpoint=path, options=InputOptions(scale=(160, 128)), device=CPU)
    assert (teacher.classes, [level.name for level in teacher.levels]) == (CLASSES, ['p5', 'p5_2', 'p6'])
    assert teacher.preprocessing.geometry.scale == (160, 128)
    assert isinstance(teacher.detector, TorchvisionDetector)
    assert teacher.detector.num_classes == 3
    assert not any(one.requires_grad for one in teacher.module.parameters())
    with pytest.raises(InputError, match='--channel-order: the input of'):
        load_teacher(reference, checkpoint=path, options=InputOptions(channel_order='rgb'), device=CPU)
    with pytest.raises(InputError, match='is it the checkpoint of this config'):
        load_teacher(f'torchvision:{LITE}', checkpoint=path, options=InputOptions(), device=CPU)


def test_it_comes_back_from_its_folder(tmp_path: Path) -> None:
    definition, detector = define(MOBILE), build(MOBILE, loaded=PARTS, with_levels=False)
    images, annotations = tmp_path / 'images', tmp_path / 'a.json'
    name, text = definition.description(detector, classes=CLASSES, evaluated_on=(images, annotations))
    (tmp_path / name).write_text(text)
    torch.save({'state_dict': dict(detector.module.state_dict())}, tmp_path / 'student.pth')
    again = read_definition(tmp_path)
    assert again is not None
    assert (again.sha256, again.classes(), again.evaluated_on()) == (definition.sha256, CLASSES, (images, annotations))
    assert again.preprocessing() == definition.preprocessing()
    built = again.build(again.preprocessing()[0], with_levels=False)
    assert isinstance(built, TorchvisionDetector)
    load_into(built.module, tmp_path / 'student.pth', name='student')
    (found,), (wanted,) = (predict(one, samples_of(one, [(120, 160)])) for one in (built, detector))
    torch.testing.assert_close(found.boxes, wanted.boxes, rtol=1e-5, atol=1e-3)
    with pytest.raises(InputError, match='has no published weights'):
        again.fetch_weights()
    # Without the folder, by torchvision alone, as the documentation has it.
    own = get_model(MOBILE, weights=None, weights_backbone=None, num_classes=4)
    own.load_state_dict(torch.load(tmp_path / 'student.pth', weights_only=True)['state_dict'], strict=False)


def test_a_hash_of_the_network_alone() -> None:
    assert len({define(*one).sha256 for one in ((MOBILE, {}), (LITE, {}), (LITE, {'nms_thresh': 0.4}))}) == 3
    assert define(LITE).sha256 == define(LITE, CHANGES[LITE]).sha256


@pytest.mark.parametrize(
    ('name', 'changes', 'message'),
    [
        ('retinanet_resnet50', {}, 'mtpd knows no detector .* it knows retinanet_resnet50_fpn'),
        (networks.KEYPOINTS, {}, 'finds key points'),
        (MOBILE, {'num_classes': 5}, 'model: num_classes: cannot be changed'),
        (MOBILE, {'image_mean': [0, 0, 0]}, 'model: image_mean: cannot be changed'),
        (MOBILE, {'weights_backbone': None}, 'model: weights_backbone: cannot be changed'),
        (MOBILE, {'rpn_head': 1}, 'model: rpn_head: cannot be changed'),
        (MOBILE, {'box_score_tresh': 0.1}, 'box_score_tresh: cannot be changed .* box_score_thresh'),
        (MOBILE, {'min_size': [320, 400]}, 'model: min_size: is .* expected a whole number'),
        (MOBILE, {'min_size': True}, 'model: min_size: is True, expected a whole number'),
        (MOBILE, {'box_score_thresh': 'high'}, "is 'high', expected a number"),
        (MOBILE, {'bbox_reg_weights': [1, 1]}, 'expected a list of four numbers'),
        (LITE, {'trainable_backbone_layers': 2}, 'torchvision trains all layers'),
        (networks.SSD300, {'size': 512}, 'model: size: cannot be changed'),
    ],
)  # fmt: skip
def test_refusals(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        define(name, changes)
    assert '\n' not in str(caught.value)


def test_refusals_later() -> None:
    definition = define(MOBILE, {'trainable_backbone_layers': 9})
    with pytest.raises(InputError, match=r'its changes do not fit torchvision:.*range \[0,6\]'):
        definition.build(define(MOBILE).preprocessing()[0], num_classes=3, loaded=PARTS)
    with pytest.raises(InputError, match='freezes layers of pretrained backbones alone'):
        definition.unfreeze(loaded=(), kept=())
    ssd = define(networks.SSD300)
    with pytest.raises(InputError, match='cannot take inputs of 256 x 320 px'):
        ssd.build(ssd.preprocessing(Geometry((640, 320)))[0], num_classes=3)


def test_bad_backbones(tmp_path: Path) -> None:
    definition, detector = define(MOBILE), build(MOBILE, loaded={BACKBONE}, with_levels=False)

    def error(state: dict[str, Tensor]) -> str:
        torch.save(state, tmp_path / 'file.pth')
        with pytest.raises(InputError) as caught:
            definition.load_backbone(detector, str(tmp_path / 'file.pth'))
        return str(caught.value)

    state = classifier('mobilenet_v3_large')
    removed = {key: value for key, value in state.items() if key != 'features.2.block.0.0.weight'}
    assert 'features.2.block.0.0.weight is missing, expected (64, 16, 1, 1)' in error(removed)
    assert 'features.0.0.weight is (4, 3), expected' in error(state | {'features.0.0.weight': torch.zeros(4, 3)})
    assert '1 tensors beyond the backbone' in error(state | {'features.17.0.weight': torch.zeros(1)})
    with pytest.raises(InputError, match='there is no file'):
        definition.load_backbone(detector, 'nowhere.pth')


@pytest.mark.parametrize('name', networks.STUDENTS)
def test_recipes(name: str) -> None:
    found = {str(one) for one in define(name, {}).recipe()}
    assert bool(found) != name.endswith('_v2')
    if found:
        assert 'momentum 0.9 (optim.momentum)' in found
