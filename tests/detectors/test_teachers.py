"""Teachers from mmdet configs and from files: eval mode, levels, input, identity, failures told in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtpd.detectors.input_options import InputOptions, stated_preprocessing
from mtpd.detectors.of_mmdet.models import build_detector, load_config
from mtpd.detectors.references import load_teacher
from mtpd.detectors.teachers import Teacher, neck_and_head_weights, state_sha256
from mtpd.errors import InputError, MtpdError, UnavailableError
from mtpd.geometry import Geometry, Level

CPU = torch.device('cpu')
TINY = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'

NET = """
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch import nn


@dataclass
class Sizes:
    channels: int = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, Sizes().channels, 3, stride=8, padding=1)
        self.neck = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.9))

    def features(self, images):
        return (self.neck(self.backbone(images)), nn.functional.avg_pool2d(images, 16))


def build(checkpoint):
    torch.manual_seed(0)
    return Net()


def build_other(checkpoint):
    return build(checkpoint)


class Told(Net):
    scale = [640, 480]
    channel_order = 'rgb'
    pad_divisor = 64
    pad_value = 114

    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor([2.0, 2.0, 5.0]).view(1, 3, 1, 1), persistent=False)


def build_told(checkpoint):
    return Told()
"""

OPTIONS = InputOptions(scale=(100, 60), mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), pad_value=5.0)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / 'net.py'
    path.write_text(NET)
    return path


def from_file(path: Path, function: str = 'build', *, options: InputOptions = OPTIONS) -> Teacher:
    return load_teacher(f'{path}:{function}', checkpoint=None, options=options, device=CPU)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('checkpoint') / 'tiny.pth'
    torch.manual_seed(1)
    model = build_detector(load_config(str(TINY)))
    torch.save({'state_dict': model.state_dict()}, path)
    return path


def from_mmdet(checkpoint: Path, *, options: InputOptions = InputOptions()) -> Teacher:  # noqa: B008
    return load_teacher(str(TINY), checkpoint=checkpoint, options=options, device=CPU)


def test_a_teacher_from_a_file(net: Path) -> None:
    teacher = from_file(net)
    assert teacher.levels == (Level('p3', 8, 4), Level('p4', 16, 3))
    assert not any(module.training for module in teacher.module.modules())
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    images = torch.randn(2, 3, 64, 96)
    maps = teacher.maps(images)
    assert maps.keys() == {'p3', 'p4'}
    assert maps['p3'].shape == (2, 4, 8, 12)
    # Dropout and batch statistics would make it differ from run to run and with the batch.
    assert torch.equal(teacher.maps(images)['p3'], maps['p3'])
    assert torch.allclose(teacher.maps(images[:1])['p3'][0], maps['p3'][0], atol=1e-6)


def test_input_by_options(net: Path) -> None:
    preprocessing = from_file(net).preprocessing
    assert preprocessing.geometry == Geometry((100, 60), pad_divisor=32)
    assert preprocessing.normalisation.mean == (1.0, 2.0, 3.0)
    assert preprocessing.normalisation.std == (2.0, 4.0, 8.0)
    assert not preprocessing.normalisation.to_rgb
    assert preprocessing.normalisation.padding == (2.0, 0.75, 0.25)


def test_input_by_the_module_and_options_above_it(net: Path) -> None:
    told = from_file(net, 'build_told', options=InputOptions()).preprocessing
    assert told.geometry == Geometry((640, 480), pad_divisor=64)
    assert told.normalisation.mean == (1.0, 2.0, 4.0)
    assert told.normalisation.std == (2.0, 2.0, 5.0)
    assert told.normalisation.to_rgb
    assert told.normalisation.padding == (113 / 2, 112 / 2, 110 / 5)
    options = InputOptions(channel_order='bgr', pad_divisor=16, mean=(0.0, 0.0, 0.0))
    changed = from_file(net, 'build_told', options=options).preprocessing
    assert changed.geometry == Geometry((640, 480), pad_divisor=16)
    assert changed.normalisation.mean == (0.0, 0.0, 0.0)
    assert changed.normalisation.std == (2.0, 2.0, 5.0)
    assert not changed.normalisation.to_rgb


def test_a_fixed_size_padded_after_the_normalisation(net: Path) -> None:
    options = replace(OPTIONS, keep_ratio=False, pad_size=(96, 128), pad_value=0.0, pad_after_normalisation=True)
    found = from_file(net, options=options).preprocessing
    assert found.geometry == Geometry((100, 60), keep_ratio=False, pad_size=(96, 128))
    assert found.normalisation.padding == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ('field', 'value'),
    [
        ('keep_ratio', 'yes'),
        ('pad_after_normalisation', 1),
        ('pad_size', (96, 0)),
        ('pad_size', 96),
        ('pad_divisor', 32.5),
        ('scale', (100.5, 60)),
        ('channel_order', ['bgr']),
    ],
)
def test_attributes_of_a_file_teacher_are_checked(field: str, value: Any) -> None:
    module = torch.nn.Identity()
    setattr(module, field, value)
    options = replace(OPTIONS, **{field: None})
    with pytest.raises(InputError) as caught:
        stated_preprocessing(module, options, name='mine')
    assert all(word in str(caught.value) for word in ('mine', field, repr(value)))


@pytest.mark.parametrize('field', ['scale', 'pad_size'])
def test_an_attribute_of_a_file_teacher_that_fails_is_named(field: str) -> None:
    def fail(module: torch.nn.Module) -> None:
        raise KeyError('side')

    module = type(
        'Module', (torch.nn.Module,), {'scale': (64, 64), 'mean': [0] * 3, 'std': [1] * 3, field: property(fail)}
    )()
    with pytest.raises(InputError, match=f"teacher mine: its {field} fails: KeyError: 'side'"):
        stated_preprocessing(module, InputOptions(), name='mine')


def test_a_teacher_from_mmdet(checkpoint: Path) -> None:
    teacher = from_mmdet(checkpoint)
    assert [level.name for level in teacher.levels] == ['p2', 'p3', 'p4', 'p5']
    assert {level.channels for level in teacher.levels} == {32}
    assert not any(module.training for module in teacher.module.modules())
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert teacher.preprocessing.geometry == Geometry((128, 128), pad_divisor=32)
    assert teacher.preprocessing.normalisation.to_rgb
    state = torch.load(checkpoint, weights_only=True)['state_dict']
    assert all(torch.equal(value, state[name]) for name, value in teacher.module.state_dict().items())
    assert from_mmdet(checkpoint, options=InputOptions(scale=(64, 32))).preprocessing.geometry.scale == (64, 32)


def test_identity(net: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The same teacher is recognised in another process; another config, file or callable is not it."""
    first = from_mmdet(checkpoint)
    assert from_mmdet(checkpoint).definition_sha256 == first.definition_sha256
    changed = tmp_path / 'changed.py'
    changed.write_text(f'_base_ = {str(TINY)!r}\nmodel = dict(backbone=dict(norm_eval=True))\n')
    other = load_teacher(str(changed), checkpoint=checkpoint, options=InputOptions(), device=CPU)
    assert other.definition_sha256 != first.definition_sha256
    definition = from_file(net).definition_sha256
    assert from_file(net).definition_sha256 == definition
    assert from_file(net, 'build_other').definition_sha256 != definition
    net.write_text(NET + '\n# changed')
    assert from_file(net).definition_sha256 != definition


def test_identity_of_configs_with_odd_values(checkpoint: Path, tmp_path: Path) -> None:
    """Infinities, classes and functions in a config; the address of a function is not part of what it is."""
    source = 'def act(x): return x\nmodel = dict(test_cfg=dict(bound=float("inf"), kind=int, call=act))'
    hashes = set()
    for number in range(2):
        config = tmp_path / f'odd{number}.py'
        config.write_text(f'_base_ = {str(TINY)!r}\n{source}\n')
        teacher = load_teacher(str(config), checkpoint=checkpoint, options=InputOptions(), device=CPU)
        hashes.add(teacher.definition_sha256)
    assert len(hashes) == 1


def test_neck_and_head_weights(net: Path) -> None:
    teacher = from_file(net)
    weights = neck_and_head_weights(teacher)
    assert weights.keys() == {f'neck.0.{name}' for name in teacher.module.get_submodule('neck.0').state_dict()}
    weights['neck.0.weight'] += 1
    assert teacher.module.get_parameter('neck.0.weight').max() == 1


def test_a_wrapped_detectors_backbone_is_left_out(net: Path) -> None:
    """As of a torchvision detector in a module of one's own, whose backbone holds its FPN."""
    teacher = from_file(net)
    wrapped = nn.ModuleDict({'model': nn.ModuleDict({
        'backbone': nn.ModuleDict({'body': nn.Linear(1, 1), 'fpn': nn.Linear(1, 1)}),
        'head': nn.Linear(1, 1), 'backbones': nn.Linear(1, 1),
    })})  # fmt: skip
    found = {name.rpartition('.')[0] for name in neck_and_head_weights(replace(teacher, module=wrapped))}
    assert found == {'model.backbone.fpn', 'model.head', 'model.backbones'}


def test_state_hash_sees_every_change_and_nothing_else() -> None:
    state = {
        'a': torch.arange(6.0).view(2, 3),
        'b': torch.tensor(True),
        'c': torch.empty(0, 4),
        'd': torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
        'e': torch.arange(12.0).view(3, 4).t(),
    }
    expected = state_sha256(state)
    assert state_sha256(dict(reversed(state.items()))) == expected
    assert state_sha256(state | {'e': state['e'].contiguous()}) == expected
    for changed in (
        {'a': state['a'].view(3, 2)},
        {'a': state['a'].double()},
        {'a': state['a'].view(torch.int32)},
        {'a': torch.nextafter(state['a'], torch.tensor(9.0))},
        {'b': torch.tensor(False)},
        {'c': torch.empty(4, 0)},
        {'d': -state['d']},
        {'f': torch.zeros(1)},
    ):
        assert state_sha256(state | changed) != expected
    assert state_sha256({('z' if name == 'a' else name): value for name, value in state.items()}) != expected


@pytest.mark.parametrize(
    ('body', 'error', 'message'),
    [
        ('raise torch.OutOfMemoryError("CUDA")', UnavailableError, 'memory for 2 images of 64 x 96 px; use a smaller'),
        ('raise ValueError("no\\nway")', InputError, r'fails on 2 image\(s\) of 64 x 96 px .*: ValueError: no'),
        ('return {"p3": images}', InputError, r'features\(\) returns a dict of p3, expected a list of tensors'),
        ('return [images.numpy()]', InputError, r'features\(\) returns a list, expected a list of tensors'),
        ('return [images[:, 0]]', InputError, r'map 0 .*\(2, 64, 96\), expected \(batch, channels'),
        ('return [images, images.long()]', InputError, r'map 1 .* is of type int64, expected'),
        ('return [images.to_sparse()]', InputError, r'map 0 .* is of type sparse, expected'),
        ('return [images.to("meta")]', InputError, r'map 0 .* is on meta for images on cpu'),
        ('return super().features(images)[:1]', InputError, r'1 maps with the channels \[4\] .* 2 with \[4, 3\]'),
        ('return [m[:, :2] for m in super().features(images)]', InputError, r'channels \[2, 2\]'),
        ('return [torch.zeros(())]', InputError, 'expected as many images'),
    ],
)
def test_failures_on_the_way(net: Path, body: str, error: type[MtpdError], message: str) -> None:
    """After the teacher was loaded: the probe has one image, what follows has two."""
    net.write_text(
        f'{NET}\nclass Bad(Net):\n    def features(self, images):\n'
        f'        if len(images) == 1:\n            return super().features(images)\n        {body}\n'
        f'def build(checkpoint):\n    return Bad()\n'
    )
    teacher = from_file(net)
    with pytest.raises(error, match=message) as caught:
        teacher.maps(torch.zeros(2, 3, 64, 96))
    assert f'teacher {net}:build' in str(caught.value)


def with_features(net: Path, body: str, *, seed: str = 'torch.manual_seed(0)') -> Path:
    net.write_text(
        f'{NET}\nclass Other(Net):\n    def features(self, images):\n        {body}\n'
        f'def build(checkpoint):\n    {seed}\n    return Other()\n'
    )
    return net


@pytest.mark.parametrize('dtype', ['half', 'double', 'bfloat16'])
def test_maps_of_any_floating_type_and_with_gradient(net: Path, dtype: str) -> None:
    body = f'return [m.{dtype}().requires_grad_() for m in super().features(images)]'
    for values in from_file(with_features(net, body)).maps(torch.ones(1, 3, 64, 96)).values():
        assert values.is_floating_point()
        assert not values.requires_grad


@pytest.mark.parametrize(
    'body',
    [
        'return [nn.functional.dropout(m, 0.5, training=True) for m in super().features(images)]',
        'return [m + torch.rand(1) for m in super().features(images)]',
        'self.train(); return super().features(images)',
        'self.backbone.bias.data += 0.1; return super().features(images)',
    ],
)
def test_a_network_that_does_not_repeat_itself(net: Path, body: str) -> None:
    with pytest.raises(InputError, match=r'net\.py:build: map 0 of features\(\) differs'):
        from_file(with_features(net, body))


def test_random_weights_are_said_and_come_again(net: Path, caplog: pytest.LogCaptureFixture) -> None:
    from_file(with_features(net, 'return super().features(images)'))
    assert not caplog.records
    path = with_features(net, 'return super().features(images)', seed='')
    hashes = {state_sha256(from_file(path).module.state_dict()) for _ in range(2)}
    assert len(hashes) == 1
    assert '2 of its 7 tensors (backbone.weight, ...) are random' in caplog.text


def test_what_a_teacher_draws_leaves_the_generator_alone(net: Path) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    from_file(net)
    assert torch.equal(torch.rand(1), wanted)


def test_maps_of_one_stride_are_told_apart(net: Path) -> None:
    levels = from_file(with_features(net, 'm = super().features(images); return [m[0], 2 * m[0], m[1]]')).levels
    assert [level.name for level in levels] == ['p3', 'p3_2', 'p4']


@pytest.mark.parametrize(
    ('source', 'words'),
    [
        ('import sys\nsys.exit(3)', 'imported SystemExit'),
        ('def build(checkpoint): raise SystemExit(3)', 'failed SystemExit'),
        ('Net.features = lambda self, x: exit_now()\ndef exit_now(): raise SystemExit(3)', 'fails SystemExit'),
        ('Net.features = lambda self, x: []', 'no maps'),
        ('Net.features = lambda self, x: [self.backbone(x)[:, :0]]', 'map 0 (1, 0, 32, 40)'),
        ('Net.features = lambda self, x: [self.backbone(x).transpose(2, 3)]', '40 x 32 stride'),
        ('Net.features = lambda self, x: [nn.functional.interpolate(x, scale_factor=2)]', '512 x 640 stride'),
        ('Net.features = lambda self, x: [x - x.mean((0, 2, 3), keepdim=True)]', 'map 0 batch eval()'),
        ('Net.features = lambda self, x: [nn.functional.dropout(x + 1, 0.1)]', 'map 0 same image twice'),
        # A module in a list is no attribute: eval() does not reach it.
        (
            'class Own(Net):\n'
            '    def __init__(self):\n'
            '        super().__init__()\n'
            '        self.hidden = [nn.BatchNorm2d(3)]\n'
            '    def features(self, x): return [self.hidden[0](x)]\n'
            'build = lambda checkpoint: Own()',
            'map 0 batch eval()',
        ),
    ],
)
def test_a_file_that_gives_no_maps_of_an_image(source: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / 'net.py'
    path.write_text(f'{NET}\n{source}\n')
    options = InputOptions(scale=(64, 64), mean=(0, 0, 0), std=(1, 1, 1))
    with pytest.raises(InputError) as caught:
        load_teacher(f'{path}:build', checkpoint=None, options=options, device=CPU)
    assert all(word in str(caught.value) for word in (f'{path}:build', *words.split()))


def test_maps_in_half_precision_of_one_image_at_a_time_are_taken(tmp_path: Path) -> None:
    path = tmp_path / 'net.py'
    path.write_text(f'{NET}\nNet.features = lambda self, x: [self.backbone(x).half()[: 1 // len(x)]]\n')
    options = InputOptions(scale=(64, 64), mean=(0, 0, 0), std=(1, 1, 1))
    teacher = load_teacher(f'{path}:build', checkpoint=None, options=options, device=CPU)
    assert teacher.maps(torch.zeros(1, 3, 64, 64))['p3'].dtype == torch.float32


def test_a_checkpoint_that_the_file_ignores(net: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / 'weights.pth'
    torch.save({}, checkpoint)
    net.write_text(
        'from torch import nn\n\n'
        'class Random(nn.Conv2d):\n'
        '    scale, mean, std = (64, 64), (0, 0, 0), (1, 1, 1)\n\n'
        '    def features(self, images):\n'
        '        return [self(images)]\n\n'
        'def build(checkpoint):\n'
        '    return Random(3, 4, 3, stride=8, padding=1)\n'
    )
    from_file(net)  # Random weights are taken where no others are given.
    with pytest.raises(InputError, match=r'all its 2 tensors are random, though --checkpoint .*weights\.pth is given'):
        load_teacher(f'{net}:build', checkpoint=checkpoint, options=InputOptions(), device=CPU)
