"""Detectors of transformers: numbers of the library itself, round trips, and refusals."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtpd.detectors.backbones import checkpoint_activations
from mtpd.detectors.checkpoint import load_into
from mtpd.detectors.detector import BACKBONE, HEAD, PARTS, Detector
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.of_hf.detector import HfDetector
from mtpd.detectors.of_hf.family import HfDefinition, define, load_teacher, read
from mtpd.detectors.of_hf.model_config import MODELS
from mtpd.detectors.of_hf.place import Place
from mtpd.detectors.of_hf.preprocessor import DEFAULTS, read_preprocessor, write_preprocessor
from mtpd.detectors.references import define_detector, read_definition
from mtpd.detectors.samples import Instance, Sample, collate, make_sample
from mtpd.errors import InputError, UnavailableError
from mtpd.geometry import Geometry, Level
from tiny_hf import CLASSES, SIZE, make_folder

transformers: Any = pytest.importorskip('transformers')

FAMILIES = tuple(sorted(MODELS))
CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def own_hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted weights are kept in PyTorch's folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))


@pytest.fixture(scope='module', params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp(request.param) / 'published', request.param)


@pytest.fixture(scope='module')
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One family, for what is the same in all."""
    return make_folder(tmp_path_factory.mktemp('plain') / 'published', 'rt_detr_v2')


def loaded_detector(folder: Path) -> HfDetector:
    """With its published weights, in eval mode."""
    definition = define(f'hf:{folder}', {})
    detector = definition.build(definition.preprocessing()[0])
    load_into(detector.module, definition.fetch_weights(), name='published')
    detector.module.eval()
    assert isinstance(detector, HfDetector)
    return detector


def library_model(folder: Path) -> Any:
    return transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()


def samples_of(detector: Detector, *, objects: bool = True, view: Any = 'plain') -> list[Sample]:
    """Two images of different sizes, the second with a crowd region and an object alone."""
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((50, 80), (70, 60))]
    instances = [
        [Instance((10, 5, 40, 45), 0), Instance((2, 3, 78, 20), 2)],
        [Instance((5, 6, 50, 60), 1), Instance((0, 0, 30, 30), 1, ignore=True)],
    ]
    return [
        make_sample(
            image, image_id=number, geometry=detector.preprocessing.geometry, view=view,
            instances=found if objects else [],
        )
        for number, (image, found) in enumerate(zip(images, instances, strict=True))
    ]  # fmt: skip


def inputs_of(detector: Detector, samples: list[Sample]) -> Tensor:
    return collate(samples, preprocessing=detector.preprocessing, device=CPU)


def total(losses: dict[str, Tensor]) -> Any:
    return torch.stack(list(losses.values())).sum()


def test_losses_are_those_of_the_library(folder: Path) -> None:
    detector = loaded_detector(folder)
    samples = samples_of(detector)
    images = inputs_of(detector, samples)
    detector.module.train()
    torch.manual_seed(1)
    losses = detector.losses(images, samples)
    own = library_model(folder).train()
    boxes = [[[25 / 80, 25 / 50, 30 / 80, 40 / 50], [40 / 80, 11.5 / 50, 76 / 80, 17 / 50]]]
    boxes += [[[27.5 / 60, 33 / 70, 45 / 60, 54 / 70]]]
    labels = [
        {'class_labels': torch.tensor(found), 'boxes': torch.tensor(places)}
        for found, places in zip(([0, 2], [1]), boxes, strict=True)
    ]
    torch.manual_seed(1)
    outputs = own(images, labels=labels)
    torch.testing.assert_close(total(losses), outputs.loss)
    assert losses.keys() == outputs.loss_dict.keys()
    assert any('_dn_' in name for name in losses)
    torch.manual_seed(1)
    again = detector.losses(images, samples)
    # Batch norms have moved, but in training mode that changes nothing.
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def test_gradients_reach_every_parameter(folder: Path) -> None:
    definition = define(f'hf:{folder}', {'freeze_backbone_batch_norms': False})
    torch.manual_seed(0)
    detector = definition.build(definition.preprocessing()[0], num_classes=3)
    samples = samples_of(detector)
    total(detector.losses(inputs_of(detector, samples), samples)).backward()
    parameters = dict(detector.module.named_parameters())
    lacking = [name for name, value in parameters.items() if value.grad is None or not value.grad.isfinite().all()]
    # Of HGNet-V2 the last query position of a decoder and the like may be unused, of backbone and encoder nothing.
    assert not [name for name in lacking if name.startswith(('model.backbone', 'model.encoder'))]
    assert all(value.requires_grad for value in parameters.values())
    for part in ('model.backbone', 'model.encoder'):
        sums = [value.grad.abs().sum() for name, value in parameters.items() if name.startswith(part)]  # type: ignore[union-attr]
        assert float(torch.stack(sums).max()) > 0


def test_images_without_objects(folder: Path) -> None:
    detector = loaded_detector(folder)
    detector.module.train()
    samples = samples_of(detector, objects=False)
    images = inputs_of(detector, samples)
    value = total(detector.losses(images, samples))
    value.backward()
    assert value.isfinite()
    mixed = [samples[0], samples_of(detector)[1]]
    assert total(detector.losses(images, mixed)).isfinite()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_losses_under_autocast(folder: Path, dtype: torch.dtype) -> None:
    detector = loaded_detector(folder)
    detector.module.train()
    samples = samples_of(detector)
    images = inputs_of(detector, samples)
    torch.manual_seed(1)
    wanted = total(detector.losses(images, samples))
    torch.manual_seed(1)
    with torch.autocast('cpu', dtype=dtype):
        found = total(detector.losses(images, samples))
    found.backward()
    assert abs(found.item() - wanted.item()) < 0.25 * wanted.item()


def test_predictions_are_those_of_the_library(folder: Path) -> None:
    from PIL import Image

    detector = loaded_detector(folder)
    samples = samples_of(detector)
    found = detector.predict(inputs_of(detector, samples), samples)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend='pil')
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((50, 80), (70, 60))]
    inputs = processor([Image.fromarray(image[..., ::-1].copy()) for image in images], return_tensors='pt')
    torch.testing.assert_close(inputs['pixel_values'], inputs_of(detector, samples), atol=1e-5, rtol=0)
    with torch.no_grad():
        outputs = library_model(folder)(inputs['pixel_values'])
    wanted = processor.post_process_object_detection(outputs, threshold=-1.0, target_sizes=[(50, 80), (70, 60)])
    for one, other in zip(found, wanted, strict=True):
        assert len(one.scores) == 10
        torch.testing.assert_close(one.scores, other['scores'], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.boxes, other['boxes'], atol=1e-2, rtol=1e-4)
        assert torch.equal(one.labels, other['labels'])
        assert one.boxes.std(dim=0).max() > 0.1  # they are not all the same


def test_boxes_of_mirrored_and_padded_images(plain_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = loaded_detector(plain_folder)
    geometry = Geometry((64, 64), keep_ratio=True, pad_divisor=32, backend='pillow')
    detector = replace(detector, preprocessing=replace(detector.preprocessing, geometry=geometry))
    samples = samples_of(detector, view='flip')
    images = inputs_of(detector, samples)
    assert images.shape == (2, 3, 64, 64)
    assert samples[0].resized == (40, 64)  # of 50 x 80 px
    seen: list[Any] = []

    class Model:
        config = detector.module.config

        def __call__(self, images: Tensor, labels: Any = None) -> Any:
            seen.extend(labels or [])
            if labels is not None:
                return type('Outputs', (), {'loss_dict': {}})
            boxes = torch.stack([one['boxes'][:1] for one in seen])
            return type('Outputs', (), {'logits': torch.tensor([[[0.0, 2, 1]]]).expand(2, 1, 3), 'pred_boxes': boxes})

    fake = replace(detector, module=Model())  # type: ignore[arg-type]
    fake.losses(images, samples)
    # 10..40 of 80 px are 8..32 of 64 px, mirrored 32..56; 5..45 of 50 px are 4..36 of 64 px with padding.
    torch.testing.assert_close(seen[0]['boxes'][0], torch.tensor([44 / 64, 20 / 64, 24 / 64, 32 / 64]))
    assert [len(one['boxes']) for one in seen] == [2, 1]  # the crowd region is left out
    found = fake.predict(images, samples)
    torch.testing.assert_close(found[0].boxes[0], torch.tensor([40.0, 5, 70, 45]))  # of the mirrored image
    assert found[0].labels.tolist() == [1]


def test_memory_formats_and_checkpointing_change_nothing(folder: Path) -> None:
    detector = loaded_detector(folder)
    detector.module.train()
    samples = samples_of(detector)
    images = inputs_of(detector, samples)

    def losses(one: HfDetector) -> Any:
        torch.manual_seed(1)
        return total(one.losses(images, samples))

    wanted = losses(detector)
    averaged = copy.deepcopy(detector.module)  # as an EMA is made
    names = [name for name, _ in averaged.named_parameters()]
    assert names == [name for name, _ in detector.module.named_parameters()]
    torch.testing.assert_close(losses(replace(detector, module=averaged)), wanted)
    detector.module.to(memory_format=torch.channels_last)
    assert checkpoint_activations(detector.module.get_submodule(detector.backbone)) > 0
    found = losses(detector)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    found.backward()


def test_maps(folder: Path) -> None:
    detector = loaded_detector(folder)
    assert detector.levels == (Level('p3', 8, 16), Level('p4', 16, 16), Level('p5', 32, 16))
    assert detector.module.get_submodule(detector.backbone) is not None
    samples = samples_of(detector)
    images = inputs_of(detector, samples)
    with torch.no_grad():
        maps = detector.maps(images)
        with detector.captured_maps() as captured:
            wanted = detector.predict(images, samples)
    assert all(torch.equal(one, other) for one, other in zip(maps, captured, strict=True))
    with detector.given_maps(maps):
        found = detector.predict(torch.zeros_like(images), samples)
    assert all(torch.equal(one.boxes, other.boxes) for one, other in zip(found, wanted, strict=True))
    black = detector.predict(torch.zeros_like(images), samples)
    assert not torch.equal(black[0].boxes, wanted[0].boxes)
    detector.module.train()
    given = [one.clone().requires_grad_() for one in maps]
    with detector.given_maps(given):
        total(detector.losses(images, samples)).backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in given)
    with pytest.raises(InputError, match='hook point elsewhere'):
        detector.maps(images, hook_point='elsewhere')


def test_saved_student_is_loaded_by_the_library(folder: Path, tmp_path: Path) -> None:
    definition = define(f'hf:{folder}', {})
    torch.manual_seed(3)
    detector = definition.build(definition.preprocessing()[0], num_classes=2)
    detector.save(tmp_path, classes=('a', 'b'))
    model = library_model(tmp_path / 'hf')
    assert model.config.id2label == {0: 'a', 1: 'b'}
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'hf')
    assert dict(processor.size) == {'height': SIZE, 'width': SIZE}
    samples = samples_of(detector)
    images = inputs_of(detector, samples)
    detector.module.eval()
    with torch.no_grad():
        one, other = detector.module(images), model(images)
    assert torch.equal(one.logits, other.logits)
    assert torch.equal(one.pred_boxes, other.pred_boxes)
    # And by mtpd again, as a network of its own.
    again = loaded_detector(tmp_path / 'hf')
    assert torch.equal(again.module(images).logits, one.logits)
    assert define(f'hf:{tmp_path / "hf"}', {}).classes() == ('a', 'b')
    with pytest.raises(InputError, match='has 2 classes, but 3 names'):
        detector.save(tmp_path, classes=CLASSES)


def test_student_of_a_run_is_read_again(folder: Path, tmp_path: Path) -> None:
    definition = define(f'hf:{folder}', {'num_queries': 7, 'backbone_config.hidden_act': 'silu'})
    detector = definition.build(definition.preprocessing()[0], num_classes=2)
    evaluated_on = tmp_path / 'images', tmp_path / 'val.json'
    name, text = definition.description(detector, classes=('a', 'b'), evaluated_on=evaluated_on)
    (tmp_path / name).write_text(text)
    torch.save({'state_dict': detector.module.state_dict(), 'meta': {}}, tmp_path / 'student.pth')
    detector.save(tmp_path, classes=('a', 'b'))
    found = read_definition(tmp_path)
    assert found is not None
    assert found.classes() == ('a', 'b')
    assert found.evaluated_on() == evaluated_on
    preprocessing, notes = found.preprocessing()
    assert (preprocessing, notes) == (detector.preprocessing, ())
    again = found.build(preprocessing)
    load_into(again.module, tmp_path / 'student.pth', name='student')
    images = inputs_of(detector, samples_of(detector))
    assert torch.equal(again.module.eval()(images).logits, detector.module.eval()(images).logits)
    assert again.num_classes == 2
    assert found.sha256 == define(f'hf:{tmp_path / "hf"}', {}).sha256
    assert found.sha256 != definition.sha256  # of another number of classes


def test_the_hash_is_independent_of_place_and_names(plain_folder: Path, tmp_path: Path) -> None:
    values = json.loads((plain_folder / 'config.json').read_text())
    values |= {'id2label': {'0': 'x', '1': 'y', '2': 'z'}, 'transformers_version': '4.50.0', '_name_or_path': 'other'}
    values |= {'use_timm_backbone': False, 'backbone': None, 'torch_dtype': 'float16', 'anchor_image_size': [640, 640]}
    (tmp_path / 'config.json').write_text(json.dumps(values))
    definition = define(f'hf:{plain_folder}', {})
    other = define(f'hf:{tmp_path}', {})
    assert other.sha256 == definition.sha256
    assert other.sha256 != define(f'hf:{tmp_path}', {'num_queries': 9}).sha256
    # Without a preprocessor_config.json: the family's defaults.
    assert other.preprocessing()[0].geometry.scale == (640, 640)
    assert all(value.dtype != torch.float16 for value in other.build(other.preprocessing()[0]).module.parameters())


def test_teacher(folder: Path, tmp_path: Path) -> None:
    (folder / 'README.md').write_text('---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n')
    options: dict[str, Any] = {'checkpoint': None, 'device': CPU, 'trust_checkpoint': False, 'hook': 'auto'}
    teacher = load_teacher(f'hf:{folder}', options=InputOptions(), **options)
    assert teacher.license == 'apache-2.0'
    assert teacher.classes == CLASSES
    assert [level.name for level in teacher.levels] == ['p3', 'p4', 'p5']
    assert not any(value.requires_grad for value in teacher.module.parameters())
    detector = loaded_detector(folder)
    images = inputs_of(detector, samples_of(detector))
    maps = teacher.maps(images)
    assert all(torch.equal(maps[f'p{3 + i}'], one) for i, one in enumerate(detector.maps(images)))
    scaled = load_teacher(f'hf:{folder}', options=InputOptions(scale=(64, 128)), **options)
    assert scaled.preprocessing.geometry.scale == (64, 128)
    with pytest.raises(InputError, match='--pad-value'):
        load_teacher(f'hf:{folder}', options=InputOptions(pad_value=1.0), **options)
    torch.save({'state_dict': teacher.module.state_dict()}, tmp_path / 'own.pth')
    options['checkpoint'] = tmp_path / 'own.pth'
    same = load_teacher(f'hf:{folder}', options=InputOptions(), **options)
    assert torch.equal(same.maps(images)['p3'], maps['p3'])


def test_backbones(folder: Path, tmp_path: Path) -> None:
    definition = define(f'hf:{folder}', {})
    published = loaded_detector(folder).module.get_submodule('model.backbone').state_dict()
    # Of the whole network, of its part, and of the backbone that is a network of its own.
    prefixes = {'pretrained': '', 'network': 'model.backbone.', 'part': '', 'own': '-'}
    for choice in prefixes:
        detector = definition.build(definition.preprocessing()[0], num_classes=5, with_levels=False)
        prefix, path = prefixes[choice], tmp_path / 'backbone.pth'
        torch.save({f'{prefix}{name}'.removeprefix('-model.'): value for name, value in published.items()}, path)
        said = definition.load_backbone(detector, 'pretrained' if choice == 'pretrained' else str(path))
        assert f'{len(published)} tensors' in said
        own = detector.module.get_submodule('model.backbone').state_dict()
        assert all(torch.equal(own[name], value) for name, value in published.items())
    name = next(iter(published))
    torch.save({key: value for key, value in published.items() if key != name}, path)
    with pytest.raises(InputError, match=f'the first is {name}'):
        definition.load_backbone(detector, str(path))
    with pytest.raises(InputError, match='there is no file'):
        definition.load_backbone(detector, 'nowhere.pth')
    # A student with its own norms takes the same weights.
    other = define(f'hf:{folder}', {'freeze_backbone_batch_norms': False})
    other.load_backbone(other.build(other.preprocessing()[0], with_levels=False), 'pretrained')


def test_random_backbones_are_not_frozen(folder: Path) -> None:
    def definition() -> HfDefinition:
        return define(f'hf:{folder}', {})

    assert definition().unfreeze(loaded={BACKBONE}, kept=()) == {}
    assert definition().unfreeze(loaded=PARTS, kept=()) == {}
    assert definition().unfreeze(loaded=(), kept={'freeze_backbone_batch_norms'}) == {}
    changed = definition()
    assert changed.unfreeze(loaded=(), kept=()) == {'freeze_backbone_batch_norms': False}
    module = changed.build(changed.preprocessing()[0], with_levels=False).module
    norms = {name: one for name, one in module.named_modules() if isinstance(one, torch.nn.BatchNorm2d)}
    assert any(name.startswith('model.backbone') for name in norms)
    assert all(one.weight.detach().eq(1).all() for one in norms.values())


def test_parts_and_requirements(plain_folder: Path) -> None:
    detector = loaded_detector(plain_folder)
    assert detector.part_of('model.backbone.model.x') == BACKBONE
    assert detector.part_of('model.decoder.x') == HEAD
    detector.require_inputs([(96, 96), (128, 64)])
    coarse = replace(detector, levels=detector.levels[1:])
    with pytest.raises(InputError, match=r'only 5 of them; set `model: \{num_queries: 5\}`'):
        coarse.require_inputs([(96, 96), (32, 32)])
    with pytest.raises(InputError, match='multiples of 32 px, not 100 x 96 px'):
        detector.require_inputs([(100, 96)])
    geometry = Geometry((100, 100), keep_ratio=False, pad_divisor=1)
    definition = define(f'hf:{plain_folder}', {})
    preprocessing, notes = definition.preprocessing(geometry)
    (note,) = notes
    assert note.endswith('(interpolation bilinear by cv2, not bilinear by pillow)')
    with pytest.raises(InputError, match='pad_divisor: 32'):
        definition.build(preprocessing)


def test_changes_are_refused_by_name(plain_folder: Path) -> None:
    reference = f'hf:{plain_folder}'
    assert define(reference, {'num_queries': 8}).config.num_queries == 8
    nested = define(reference, {'backbone_config': {'hidden_act': 'silu'}}).config
    assert nested.backbone_config.hidden_act == 'silu'
    for key, value in (
        ('num_querys', 8), ('num_labels', 8), ('id2label', {}), ('model_type', 'd_fine'), ('_private', 1),
        ('use_pretrained_backbone', True), ('backbone', 'resnet50'), ('backbone_config.id2label', {}), ('dtype', 'x'),
        ('anchor_image_size', [64, 64]), ('backbone_config.model_type', 'timm_backbone'),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f'model: {key} is no setting'):
            define(reference, {key: value})
    with pytest.raises(InputError, match='does not fit RTDetrV2Config'):
        define(reference, {'num_queries': 'many'})
    definition = define(reference, {'encoder_attention_heads': 3})
    with pytest.raises(InputError, match='fails on an input of 96 x 96 px'):
        definition.build(definition.preprocessing()[0])


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model_type': 'detr'}, "model_type is 'detr', expected one of d_fine, rt_detr, rt_detr_v2"),
        ({'backbone': 'resnet50'}, "backbone is 'resnet50', expected null"),
        ({'backbone_config': {'model_type': 'timm_backbone'}}, "backbone_config is a 'timm_backbone'"),
        ({'eval_size': [20, 20]}, 'eval_size'),
        ({'id2label': {'1': 'x'}}, 'the keys of its id2label are 1'),
    ],
)
def test_configs_are_refused_by_name(plain_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    values = json.loads((plain_folder / 'config.json').read_text()) | changes
    (tmp_path / 'config.json').write_text(json.dumps(values))
    with pytest.raises(InputError, match=message):
        define(f'hf:{tmp_path}', {})


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    with pytest.raises(InputError, match=r'has no config\.json'):
        define(f'hf:{tmp_path}', {})
    (tmp_path / 'config.json').write_text('[]')
    with pytest.raises(InputError, match='holds a list'):
        define(f'hf:{tmp_path}', {})
    with pytest.raises(InputError, match='there is no folder'):
        define(f'hf:{tmp_path}/none', {})
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(UnavailableError, match='give a local folder') as error:
        define('hf:owner/name-that-is-not-cached', {})
    assert '\n' not in str(error.value)


def test_repositories_in_the_cache_of_the_hub(
    plain_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    repository = tmp_path / 'models--owner--name'
    shutil.copytree(plain_folder, repository / 'snapshots' / 'abc')
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('abc')
    definition = define('hf:owner/name', {})
    assert definition.sha256 == define(f'hf:{plain_folder}', {}).sha256
    assert definition.place.absolute == 'hf:owner/name'
    assert definition.preprocessing()[0].geometry.scale == (SIZE, SIZE)
    load_into(definition.build(definition.preprocessing()[0]).module, definition.fetch_weights(), name='published')
    (repository / 'snapshots' / 'abc' / 'model.safetensors').unlink()
    with pytest.raises(UnavailableError, match=r'its model.safetensors cannot be downloaded .* set init.backbone to a'):
        definition.load_backbone(definition.build(definition.preprocessing()[0]), 'pretrained')
    with pytest.raises(InputError, match='no repository of that name'):
        define('hf:owner/na--me', {})


def test_a_missing_package(plain_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'transformers', None)
    for place in (plain_folder, 'owner/name'):
        with pytest.raises(UnavailableError, match='needs transformers, which is not installed: pip install transf'):
            define(f'hf:{place}', {})


def test_weights_that_do_not_fit(plain_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='another shape for'):
        define(f'hf:{plain_folder}', {'decoder_ffn_dim': 24}).fetch_weights()
    with pytest.raises(InputError, match=r'lacks \d+ tensors of the network'):
        define(f'hf:{plain_folder}', {'decoder_layers': 3}).fetch_weights()
    (tmp_path / 'config.json').write_bytes((plain_folder / 'config.json').read_bytes())
    with pytest.raises(InputError, match=r'has no model\.safetensors'):
        define(f'hf:{tmp_path}', {}).fetch_weights()
    (tmp_path / 'model.safetensors').write_bytes(b'no weights')
    with pytest.raises(InputError, match='does not fit'):
        define(f'hf:{tmp_path}', {}).fetch_weights()


def test_published_weights_have_every_name(folder: Path) -> None:
    from safetensors.torch import load_file

    definition = define(f'hf:{folder}', {})
    state = load_file(definition.fetch_weights())
    own = definition.build(definition.preprocessing()[0], with_levels=False).module.state_dict()
    assert state.keys() == own.keys()
    assert state.keys() != load_file(folder / 'model.safetensors').keys()  # transformers renames them


def test_preprocessors() -> None:
    values = DEFAULTS | {'do_normalize': True, 'size': {'height': 320, 'width': 640}, 'resample': 3}
    found = read_preprocessor(values, name='x')
    assert found.geometry.scale == (640, 320)
    assert (found.geometry.interpolation, found.geometry.backend) == ('bicubic', 'pillow')
    assert found.normalisation.mean == pytest.approx([255 * one for one in values['image_mean']])
    assert found.normalisation.std == pytest.approx([255 * one for one in values['image_std']])
    assert found.normalisation.padding == (0.0, 0.0, 0.0)
    written, difference = write_preprocessor(found)
    assert difference is None
    again = read_preprocessor(written, name='y')
    assert again.geometry == found.geometry
    assert again.normalisation.mean == pytest.approx(found.normalisation.mean)
    for key, value in (
        ('size', {'shortest_edge': 800}), ('do_resize', False), ('do_rescale', False), ('resample', 9),
        ('rescale_factor', 0), ('do_pad', 1), ('image_std', [1, 0, 1]), ('crop_size', 4), ('do_center_crop', True),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f'its {key} is'):
            read_preprocessor(values | {key: value}, name='x')
    kept = replace(found, geometry=Geometry((1333, 800)))
    assert write_preprocessor(kept)[0] is None
    other = replace(found, geometry=replace(found.geometry, backend='cv2'))
    assert 'cv2' in str(write_preprocessor(other)[1])


def test_recipes(folder: Path) -> None:
    definition = define(f'hf:{folder}', {})
    given = {one.key: one.values for one in definition.recipe()}
    assert given['optim.ema'] == (0.9999,)
    assert ('optim.lr' in given) == (definition.config.model_type != 'd_fine')


def test_references_find_the_family(plain_folder: Path) -> None:
    assert isinstance(define_detector(f'hf:{plain_folder}'), HfDefinition)
    assert Place(f'hf:{plain_folder}').absolute == f'hf:{plain_folder.resolve()}'


def test_transformers_is_imported_when_it_is_needed() -> None:
    program = 'import sys, mtpd.detectors.of_hf.family; sys.exit("transformers" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', program], check=False).returncode == 0


def test_records_without_a_config(plain_folder: Path, tmp_path: Path) -> None:
    definition = define(f'hf:{plain_folder}', {})
    detector = definition.build(definition.preprocessing()[0], with_levels=False)
    text = definition.description(detector, classes=CLASSES, evaluated_on=None)[1]
    (tmp_path / 'student.json').write_text(json.dumps(json.loads(text) | {'config': None}))
    with pytest.raises(InputError, match='has no config'):
        read(tmp_path)
