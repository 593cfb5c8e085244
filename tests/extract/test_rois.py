"""`mtpd-extract --rois` stores what mmdet's own teacher proposes and says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.data.coco import read_annotations
from mtpd.data.images import read_image
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.of_mmdet.data_samples import data_samples
from mtpd.detectors.references import load_teacher
from mtpd.detectors.samples import collate, make_sample
from mtpd.heads.rois import decode

CPU = torch.device('cpu')
NUM_ROIS = 12


@pytest.fixture(scope='module')
def weights(tiny_two_stage: Path, random_weights: Callable[..., Path]) -> Path:
    """Of a tiny Faster R-CNN whose answers differ from RoI to RoI."""
    path = random_weights(tiny_two_stage)
    content = torch.load(path, weights_only=True)
    for name in ('roi_head.bbox_head.fc_cls.weight', 'roi_head.bbox_head.fc_reg.weight'):
        content['state_dict'][name] *= 100
    torch.save(content, path)
    return path


@pytest.fixture(scope='module')
def two_stage(make_command: Callable[..., Any], synthetic_set: Path, tiny_two_stage: Path, weights: Path) -> Any:
    """Extracts it in several shards."""
    # Not the size of the images, which would hide a box that is not brought back to it.
    options = ['--checkpoint', weights, '--shard-mb', '0.05', '--rois', NUM_ROIS, '--limit', 12, '--scale', '192x160']
    return make_command(tiny_two_stage, synthetic_set, options)


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory, two_stage: Any) -> Path:
    """Not to be changed."""
    out = tmp_path_factory.mktemp('rois') / 'cache'
    two_stage.run(out)
    return out


def test_they_are_mmdets_own(cache: Path, tiny_two_stage: Path, weights: Path, synthetic_set: Path) -> None:
    reader = mtpd.cache.open(cache)
    assert len(reader) == 12
    teacher = load_teacher(str(tiny_two_stage), checkpoint=weights, options=InputOptions(scale=(192, 160)), device=CPU)
    module: Any = teacher.module
    coco = read_annotations(synthetic_set / 'annotations' / 'instances_train2017.json')
    for image in coco.images[:12]:
        path = synthetic_set / 'train2017' / image.file_name
        sample = make_sample(
            read_image(path, size=(image.height, image.width)),
            image_id=image.id,
            geometry=teacher.preprocessing.geometry,
            view='plain',
        )
        inputs = collate([sample], preprocessing=teacher.preprocessing, device=CPU)
        with torch.no_grad():
            maps = module.extract_feat(inputs)
            padded = inputs.shape[2], inputs.shape[3]
            made = data_samples([sample], preprocessing=teacher.preprocessing, padded=padded, device=CPU)
            (proposals,) = module.rpn_head.predict(maps, made, rescale=False)
            boxes = proposals.bboxes[:NUM_ROIS]
            rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
            answers = module.roi_head._bbox_forward(maps, rois)
            probabilities = answers['cls_score'].softmax(1)
            decoded = module.roi_head.bbox_head.bbox_coder.decode(boxes, answers['bbox_pred'])
        factors = torch.tensor(made[0].scale_factor).repeat(2)
        found = reader.rois(image.id)
        assert len(found.boxes) == NUM_ROIS
        torch.testing.assert_close(found.boxes, (boxes / factors).float(), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.probabilities, probabilities, rtol=1e-3, atol=1e-3)
        labels = probabilities[:, :-1].argmax(1)
        assert torch.equal(found.labels, labels)
        own = decoded.view(NUM_ROIS, -1, 4)[torch.arange(NUM_ROIS), labels]
        # mmdet bounds how far a box may grow when it decodes; what is stored is not bounded yet.
        torch.testing.assert_close(decode(found.boxes, found.deltas), own / factors, rtol=1e-3, atol=1e-1)


def test_stopped_and_resumed_they_are_the_same(
    tmp_path: Path, two_stage: Any, cache: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    two_stage.run(tmp_path / 'cache', '--part', '2/2')
    two_stage.run(tmp_path / 'cache')
    assert contents(tmp_path / 'cache') == contents(cache)


def test_the_maps_are_those_of_a_cache_without(tmp_path: Path, two_stage: Any, cache: Path) -> None:
    two_stage.run(tmp_path / 'cache', '--rois', 0)
    with_rois, without = mtpd.cache.open(cache), mtpd.cache.open(tmp_path / 'cache')
    for image_id in without.image_ids:
        for view in ('plain', 'flip'):
            for name, maps in without.read(image_id, view).items():
                assert torch.equal(with_rois.read(image_id, view)[name], maps)
    assert 'rois' in two_stage.error(tmp_path / 'cache', '--rois', NUM_ROIS)


def test_fewer_proposals_than_asked_for(tmp_path: Path, two_stage: Any) -> None:
    two_stage.run(tmp_path / 'cache', '--rois', 300, '--views', 'plain')
    reader = mtpd.cache.open(tmp_path / 'cache')
    counts = {len(reader.rois(image_id).boxes) for image_id in reader.image_ids}
    assert max(counts) <= 100  # what its RPN gives at most
    assert min(counts) > 10


def test_refusals(
    tmp_path: Path,
    two_stage: Any,
    command: Any,
    make_command: Callable[..., Any],
    synthetic_set: Path,
    tiny_two_stage: Path,
    random_weights: Callable[..., Path],
) -> None:
    assert 'has no proposals' in command.error(tmp_path / 'cache', '--rois', 5)
    config = tmp_path / 'norms.py'
    config.write_text(
        tiny_two_stage.read_text().replace("'FPN',", "'FPN', 'norm_cfg': {'type': 'GN', 'num_groups': 4},")
    )
    normed = make_command(config, synthetic_set, ['--checkpoint', random_weights(config), '--rois', 5])
    assert 'before the norms of its neck' in normed.error(tmp_path / 'cache')
    assert 'with the plain view' in two_stage.error(tmp_path / 'cache', '--views', 'flip')
    assert not (tmp_path / 'cache').exists()


def test_dry_run_counts_them(tmp_path: Path, two_stage: Any, cache: Path) -> None:
    printed = two_stage.run(tmp_path / 'cache', '--dry-run').stdout
    many = two_stage.run(tmp_path / 'cache', '--dry-run', '--rois', 4000).stdout

    def megabytes(text: str) -> float:
        (line,) = [line for line in text.splitlines() if line.startswith('predict')]
        return float(line.split()[1])

    on_disk = sum(path.stat().st_size for path in cache.rglob('*') if path.is_file()) / 1e6
    assert megabytes(printed) == pytest.approx(on_disk, rel=0.1)
    # 48 bytes a RoI: a box, 7 probabilities, a label, deltas; and rows of a shard that its bucket does not fill.
    assert megabytes(many) - megabytes(printed) > 12 * 3988 * 48 / 1e6
