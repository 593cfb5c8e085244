"""Teachers from timm, with random weights from files: their maps, their input, and a run from images to a student."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import Tensor

import mtpd.cache
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.references import load_teacher
from mtpd.detectors.teachers import Teacher, neck_and_head_weights
from mtpd.errors import InputError, UnavailableError
from mtpd_extract.cli import main as mtpd_extract
from mtpd_train.cli import main as mtpd_train

timm = pytest.importorskip('timm')

CPU = torch.device('cpu')
STUDENT = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'student.py'
Weights = Callable[[str], Path]


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A file of random weights of a model, as timm saves one: with its classifier."""
    folder = tmp_path_factory.mktemp('weights')

    def make(name: str) -> Path:
        path = folder / f'{name}.safetensors'
        if not path.exists():
            torch.manual_seed(0)
            safetensors.torch.save_file(timm.create_model(name).state_dict(), path)
        return path

    return make


def load(reference: str, weights: Weights, **options: Any) -> Teacher:
    path = weights(reference.removeprefix('timm:').partition('@')[0])
    return load_teacher(reference, checkpoint=path, options=InputOptions(**options), device=CPU)


def tokens(model: Any, images: Tensor) -> Tensor:
    """The patch tokens of the last block as a map, without timm's own function for that."""
    found = model.forward_features(images)[:, model.num_prefix_tokens :]
    height, width = (side // model.patch_embed.patch_size[0] for side in images.shape[2:])
    return torch.as_tensor(found.transpose(1, 2).reshape(len(images), -1, height, width))


@pytest.mark.parametrize(('name', 'level', 'stride'), [('test_vit', 'p4', 16), ('eva02_tiny_patch14_224', 's14', 14)])
def test_a_transformers_patch_tokens(name: str, level: str, stride: int, weights: Weights) -> None:
    teacher = load(f'timm:{name}', weights)
    assert [(one.name, one.stride) for one in teacher.levels] == [(level, stride)]
    own = timm.create_model(name, checkpoint_path=str(weights(name)), dynamic_img_size=True).eval()
    images = torch.randn(2, 3, 4 * stride, 6 * stride, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(teacher.maps(images)[level], tokens(own, images))
    assert teacher.preprocessing.geometry.pad_divisor == stride


def test_the_input_is_that_of_its_weights(weights: Weights) -> None:
    teacher = load('timm:test_vit', weights)
    record, normalisation = timm.create_model('test_vit').pretrained_cfg, teacher.preprocessing.normalisation
    assert normalisation.mean == pytest.approx([255 * one for one in record['mean']])
    assert normalisation.std == pytest.approx([255 * one for one in record['std']])
    assert normalisation.to_rgb
    assert list(normalisation.padding) == [0, 0, 0]
    assert teacher.preprocessing.geometry.scale == (1333, 800)
    assert load('timm:test_vit', weights, scale=(640, 320)).preprocessing.geometry.scale == (640, 320)
    assert teacher.license == record['license']
    assert neck_and_head_weights(teacher) == {}


def test_blocks_and_stages(weights: Weights) -> None:
    teacher = load('timm:test_vit@5,1', weights)
    assert [level.name for level in teacher.levels] == ['p4', 'p4_2']
    images = torch.randn(1, 3, 64, 64)
    maps = teacher.maps(images)
    torch.testing.assert_close(maps['p4_2'], load('timm:test_vit', weights).maps(images)['p4'])
    assert not torch.allclose(maps['p4'], maps['p4_2'])
    assert teacher.definition_sha256 != load('timm:test_vit', weights).definition_sha256
    for name in ('test_resnet', 'test_convnext'):
        teacher = load(f'timm:{name}', weights)
        assert [level.name for level in teacher.levels] == ['p2', 'p3', 'p4', 'p5']
        assert teacher.preprocessing.geometry.pad_divisor == 32


def test_mistakes(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(reference: str, checkpoint: Path | None = None, kind: type[Exception] = InputError) -> str:
        with pytest.raises(kind) as caught:
            load_teacher(reference, checkpoint=checkpoint, options=InputOptions(), device=CPU)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    assert 'did you mean resnet50' in error('timm:resnet50x')
    for blocks in ('9', '1,1', 'x', '-1', '1,'):
        assert 'numbers of blocks from 0 to 5' in error(f'timm:test_vit@{blocks}', weights('test_vit'))
    assert 'there is no checkpoint' in error('timm:test_vit', tmp_path / 'none.safetensors')
    assert 'does not fit it' in error('timm:test_vit', weights('test_resnet'))
    (tmp_path / 'pickle.pth').write_bytes(b'cos\nsystem\n(S"touch ' + str(tmp_path / 'ran').encode() + b'"\ntR.')
    assert 'does not fit it' in error('timm:test_vit', tmp_path / 'pickle.pth')
    assert not (tmp_path / 'ran').exists()
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: (_ for _ in ()).throw(OSError('no route to host')))
    assert 'cannot be downloaded (no route to host)' in error('timm:test_vit', kind=UnavailableError)
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    assert 'pip install timm' in error('timm:test_vit', kind=UnavailableError)


@pytest.mark.parametrize(
    ('name', 'loss'),
    [
        ('test_vit', {'loss': 'cosine', 'levels': ['p4']}),
        (
            'eva02_tiny_patch14_224',
            {'loss': 'cosine', 'levels': ['p4'], 'teacher_levels': ['s14'], 'resize': 'student'},
        ),
    ],
)
def test_from_images_to_a_student(
    name: str, loss: dict[str, Any], weights: Weights, synthetic_set: Path, tmp_path: Path
) -> None:
    cache, scale = tmp_path / 'cache', '112x112' if '14' in name else '128x128'
    options = ['--teacher', f'timm:{name}', '--checkpoint', weights(name), '--coco', synthetic_set, '--out', cache]
    result = CliRunner().invoke(mtpd_extract, list(map(str, [*options, '--scale', scale, '--limit', 24])))
    assert result.exit_code == 0, result.output
    opened = mtpd.cache.open(cache)
    assert opened.manifest.description.provenance['license'] in ('apache-2.0', 'mit')
    assert opened.teacher_weights() == {}
    stage = {
        'student': str(STUDENT),
        'cache': str(cache),
        'init': {'backbone': 'none'},
        'distill': [loss],
        'data': {'coco': str(synthetic_set), 'val': None, 'batch_size': 8, 'workers': 0},
        'optim': {'type': 'adamw', 'lr': 1e-4, 'epochs': 1},
    }
    (tmp_path / 'stage.yaml').write_text(json.dumps(stage))
    mtpd_train.main(
        [str(tmp_path / 'stage.yaml'), '--out', str(tmp_path / 'run'), '--device', 'cpu'], standalone_mode=False
    )
    record = json.loads((tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()[-1])
    (found,) = [value for key, value in record['losses'].items() if key.startswith('distill/cosine/')]
    assert 0 < found < 2
