"""The teacher's head on given maps: the same detections as the whole detector, and other maps give others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.references import load_teacher
from mtpd.detectors.results import coco_results
from mtpd.detectors.samples import Sample, collate, make_sample
from mtpd.detectors.teacher_heads import head_detections, require_head
from mtpd.detectors.teachers import Teacher
from mtpd.errors import InputError

CPU = torch.device('cpu')
TINY = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
FASTER = 'faster-rcnn_r50_fpn_1x_coco'
REPPOINTS = 'reppoints-moment_r50_fpn-gn_head-gn_1x_coco'  # its maps are taken before the norms of its neck
IDS = list(range(101, 181))
IMAGES = [90, 128]


def batch(teacher: Teacher) -> tuple[Tensor, list[Sample]]:
    """Two images of different sizes."""
    generator = np.random.default_rng(0)
    samples = [
        make_sample(
            generator.integers(0, 256, (height, width, 3)).astype(np.uint8),
            image_id=height,
            geometry=teacher.preprocessing.geometry,
            view='plain',
        )
        for height, width in ((90, 120), (128, 96))
    ]
    return collate(samples, preprocessing=teacher.preprocessing, device=CPU), samples


@pytest.fixture(scope='module', params=['one stage', 'two stages', 'norms'])
def teacher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    """An mmdet teacher with random weights."""
    from mtpd.detectors.of_mmdet.models import build_detector, load_config

    torch.manual_seed(1)
    name = {'one stage': str(TINY), 'two stages': FASTER, 'norms': REPPOINTS}[request.param]
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    torch.save({'state_dict': build_detector(load_config(name)).state_dict()}, path)
    teacher = load_teacher(name, checkpoint=path, options=InputOptions(scale=(128, 96)), device=CPU)
    module: Any = teacher.module
    # Random weights are sure of nothing.
    (module.roi_head if request.param == 'two stages' else module.bbox_head).test_cfg['score_thr'] = 0.0
    return teacher


def test_live_maps_give_what_the_detector_finds(teacher: Teacher) -> None:
    require_head(teacher)
    inputs, samples = batch(teacher)
    maps = teacher.maps(inputs)
    assert teacher.detector is not None
    wanted = coco_results(teacher.detector.predict(inputs, samples), IMAGES, category_ids=IDS)[0]
    ordered = [maps[level.name] for level in teacher.levels]
    found = head_detections(teacher, ordered, inputs=torch.zeros_like(inputs), samples=samples, category_ids=IDS)
    assert wanted
    assert found == wanted
    other = [values + 0.3 * values.std() * torch.randn_like(values) for values in ordered]
    assert head_detections(teacher, other, inputs=inputs, samples=samples, category_ids=IDS) != wanted
    # The detector is itself again.
    assert coco_results(teacher.detector.predict(inputs, samples), IMAGES, category_ids=IDS)[0] == wanted


HEADED = """
from torch import nn


class Headed(nn.Module):
    scale, mean, std = (64, 64), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def features(self, images):
        return [images.mean(1, keepdim=True)[:, :, ::8, ::8]]

    def predict_from_features(self, maps, input_size):
        assert input_size == (64, 64)
        boxes = maps[0].new_tensor([[8.0, 16.0, 32.0, 48.0]])
        return [(boxes * float(one.mean()), boxes.new_tensor([0.5]), boxes.new_tensor([2]).long()) for one in maps[0]]


def build(checkpoint):
    return Headed()
"""


def file_teacher(folder: Path, source: str) -> Teacher:
    (folder / 'headed.py').write_text(source)
    return load_teacher(f'{folder / "headed.py"}:build', checkpoint=None, options=InputOptions(), device=CPU)


def test_a_callable_offers_its_head(tmp_path: Path) -> None:
    teacher = file_teacher(tmp_path, HEADED)
    require_head(teacher)
    inputs, samples = batch(teacher)
    maps = [torch.stack([torch.ones(1, 8, 8), torch.full((1, 8, 8), 0.5)])]
    found: list[Any] = head_detections(teacher, maps, inputs=inputs, samples=samples, category_ids=[7, 8, 9])
    # 90 x 120 px became 48 x 64, and 128 x 96 became 64 x 48: boxes go back to original px, as x, y, width, height.
    assert [one['image_id'] for one in found] == [90, 128]
    assert {one['category_id'] for one in found} == {9}
    np.testing.assert_allclose(found[0]['bbox'], [8 * 1.875, 16 * 1.875, 24 * 1.875, 32 * 1.875])
    np.testing.assert_allclose(found[1]['bbox'], [8, 16, 24, 32])


def test_a_callable_without_a_head(tmp_path: Path) -> None:
    teacher = file_teacher(tmp_path, HEADED.replace('predict_from_features', 'predict'))
    assert isinstance(teacher.module, nn.Module)
    with pytest.raises(InputError, match='has no head to evaluate; add a method predict_from_features'):
        require_head(teacher)


def test_more_classes_than_categories(teacher: Teacher) -> None:
    inputs, samples = batch(teacher)
    with pytest.raises(InputError, match=r'class number \d+, but the annotations have only 1 categories'):
        head_detections(teacher, list(teacher.maps(inputs).values()), inputs=inputs, samples=samples, category_ids=[7])
