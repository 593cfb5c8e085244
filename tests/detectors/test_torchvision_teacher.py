"""Detectors of torchvision as teachers, with random weights from files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torchvision.models import get_model

import mtpd.cache
from mtpd.detectors.teachers import InputOptions, Teacher, load_teacher, neck_and_head_weights
from mtpd.detectors.transforms import image_view
from mtpd.errors import InputError, UnavailableError
from mtpd_extract.cli import main as mtpd_extract

CPU = torch.device('cpu')
Weights = Callable[[str], Path]


@pytest.fixture(scope='module')
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A file of random weights of a detector."""
    folder = tmp_path_factory.mktemp('weights')

    def make(name: str) -> Path:
        path = folder / f'{name}.pth'
        if not path.exists():
            torch.manual_seed(0)
            torch.save(get_model(name, weights=None, weights_backbone=None).state_dict(), path)
        return path

    return make


def load(name: str, weights: Weights, **options: Any) -> Teacher:
    reference = f'torchvision:{name}'
    return load_teacher(reference, checkpoint=weights(name), options=InputOptions(**options), device=CPU)


@pytest.mark.parametrize(
    ('name', 'levels'),
    [
        ('retinanet_resnet50_fpn', ['p3', 'p4', 'p5', 'p6', 'p7']),
        ('fasterrcnn_mobilenet_v3_large_320_fpn', ['p5', 'p5_2', 'p6']),
    ],
)
def test_the_maps_that_its_own_head_gets(name: str, levels: list[str], weights: Weights) -> None:
    """On torchvision's own input of an image that needs no resizing, which that library resizes in its own way."""
    teacher = load(name, weights)
    assert [level.name for level in teacher.levels] == levels
    own = get_model(name, weights=None, weights_backbone=None).eval()
    own.load_state_dict(torch.load(weights(name), weights_only=True))
    (short,), long = own.transform.min_size, own.transform.max_size
    pixels = torch.randint(0, 256, (3, short, short + 50), generator=torch.Generator().manual_seed(0)).byte()
    assert short + 50 <= long
    image = image_view(pixels.permute(1, 2, 0).numpy(), geometry=teacher.preprocessing.geometry, view='plain')
    maps = teacher.maps_of([image], padded=teacher.preprocessing.geometry.padded((short, short + 50)))
    with torch.no_grad():
        batch, _ = own.transform([pixels.flip(0).float() / 255])
        wanted = own.backbone(batch.tensors)
    for found, other in zip(maps.values(), wanted.values(), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_what_a_cache_keeps_of_its_weights(weights: Weights) -> None:
    names = neck_and_head_weights(load('retinanet_resnet50_fpn', weights))
    assert {'.'.join(name.split('.')[:3]) for name in names} == {
        'detector.backbone.fpn', 'detector.head.classification_head', 'detector.head.regression_head'
    }  # fmt: skip


def test_mistakes(weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def error(reference: str, checkpoint: Path | None = None, kind: type[Exception] = InputError) -> str:
        with pytest.raises(kind) as caught:
            load_teacher(reference, checkpoint=checkpoint, options=InputOptions(), device=CPU)
        assert '\n' not in str(caught.value)
        return str(caught.value)

    assert 'it has retinanet_resnet50_fpn' in error('torchvision:retinanet_resnet50')
    name = 'torchvision:fasterrcnn_mobilenet_v3_large_320_fpn'
    assert 'does not fit it' in error(name, weights('retinanet_resnet50_fpn'))
    assert 'does not fit it' in error(name, tmp_path / 'none.pth')
    monkeypatch.setattr('torchvision.models.get_model', lambda *_, **__: (_ for _ in ()).throw(OSError('no route')))
    assert 'cannot be downloaded (no route)' in error(name, kind=UnavailableError)


def test_extraction(weights: Weights, synthetic_set: Path, tmp_path: Path) -> None:
    name = 'retinanet_resnet50_fpn'
    options = ['--teacher', f'torchvision:{name}', '--checkpoint', weights(name), '--coco', synthetic_set]
    options += ['--out', tmp_path / 'cache', '--scale', '128x128', '--limit', 4, '--views', 'plain']
    result = CliRunner().invoke(mtpd_extract, list(map(str, options)))
    assert result.exit_code == 0, result.output
    assert [level.name for level in mtpd.cache.open(tmp_path / 'cache').levels] == ['p3', 'p4', 'p5', 'p6', 'p7']


def test_a_fixed_size(weights: Weights) -> None:
    teacher = load('ssdlite320_mobilenet_v3_large', weights)
    assert teacher.preprocessing.geometry.resized((480, 640)) == (320, 320)
    assert [(level.name, level.channels) for level in teacher.levels[:2]] == [('p4', 672), ('p5', 480)]
