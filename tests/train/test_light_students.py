"""The light students that the project ships can be trained, and name the ImageNet weights that they start from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.detectors import Detector, define_detector
from mtpd.errors import UnavailableError
from mtpd_train.stage import Stage
from mtpd_train.training.step import loaded, step_losses

BuildStage = Callable[..., Stage]
STUDENTS = sorted((Path(__file__).parents[2] / 'configs' / 'students').glob('*.py'))
WEIGHTS = {
    'r18': 'https://download.pytorch.org/models/resnet18-f37072fd.pth',
    'mobilenet_v2': 'https://download.openmmlab.com/mmdetection/v2.0/third_party/mobilenet_v2_batch256_imagenet-',
}
# Millions of parameters with the heads of the 80 classes of COCO, and with 6 classes a little less.
SIZES = {'retinanet': (9, 22), 'reppoints': (9, 22), 'faster_rcnn': (19, 30), 'mask_rcnn': (19, 32)}

# One of each number of stages; the others are slow tests.
QUICK = ('retinanet_r18', 'faster_rcnn_mobilenet_v2')

# mmengine 0.10.7 on Python 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:'pkgutil.find_loader' is deprecated:DeprecationWarning")


def test_all_are_there() -> None:
    assert {path.stem for path in STUDENTS} == {f'{kind}_{backbone}' for kind in SIZES for backbone in WEIGHTS}


@pytest.mark.parametrize(
    'path',
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow, id=path.stem) for path in STUDENTS],
)
def test_one_step(
    path: Path, build_stage: BuildStage, caches: dict[int, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few_boxes = {'train_cfg.rcnn.sampler.num': 32} if 'rcnn' in path.stem else {}
    data = {'batch_size': 1, 'val': None}
    stage = build_stage(
        student=str(path), model=few_boxes, cache=caches[24], data=data, distill=[{'loss': 'masked_mse'}]
    )
    model = stage.student.module
    ((least, most),) = (size for kind, size in SIZES.items() if path.stem.startswith(kind))
    assert least < sum(one.numel() for one in model.parameters()) / 1e6 < most
    assert [level.stride for level in stage.student.levels][-3:] in ([16, 32, 64], [32, 64, 128])
    assert {level.channels for level in stage.student.levels} == {256}
    model.train()
    samples, ahead = next(loaded(stage, stage.epoch_batches(0)))
    losses = step_losses(stage, samples, ahead)
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    assert all(loss.isfinite() for loss in losses.values())
    distilled = {'distill/masked_mse/p3', 'distill/masked_mse/p4', 'distill/masked_mse/p5'}
    assert losses.keys() >= distilled
    for part in ('backbone', 'neck'):
        gradients = [one.grad for one in model.get_submodule(part).parameters() if one.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
    assert_pretrained(path, stage.student, monkeypatch, tmp_path)


def assert_pretrained(path: Path, student: Detector, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """`init.backbone: pretrained` asks for the weights of this backbone."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError('Network is unreachable')

    monkeypatch.setattr('socket.socket.connect', refuse)
    monkeypatch.setenv('TORCH_HOME', str(folder))
    (address,) = (address for backbone, address in WEIGHTS.items() if path.stem.endswith(backbone))
    with pytest.raises(UnavailableError) as caught:
        define_detector(str(path)).load_backbone(student, 'pretrained')
    assert address in str(caught.value)
