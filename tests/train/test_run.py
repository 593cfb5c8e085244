"""Whole runs of `mtpd-train`: two stages from two teachers, what they leave behind, and what mmdet makes of it."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.detectors.of_mmdet.runtime import prepare
from mtpd_train.evaluation import detect
from mtpd_train.optimization import Optimization
from mtpd_train.settings.stage_file import load_stages
from mtpd_train.stage import build_stages

# mmengine 0.10.7 on Python 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:'pkgutil.find_loader' is deprecated:DeprecationWarning")

Records = Callable[..., list[dict[str, Any]]]


@dataclass(frozen=True)
class Finished:
    """A run of two stages, and the states of the student at the start of each."""

    out: Path
    files: list[Path]
    output: str
    starts: list[dict[str, torch.Tensor]]


@pytest.fixture(scope='module')
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    caches: dict[int, Path],
) -> Finished:
    """Stage 1 learns by masked MSE from 16 channels, stage 2 by MGD from 24 and a letterbox; the student has 32."""
    folder = tmp_path_factory.mktemp('two_stages')
    detects_all = {'test_cfg.score_thr': 0.0}
    files = [
        write_stage(
            folder / 'one.yaml', cache=caches[16], model=detects_all, optim={'epochs': 2},
            distill=[{'loss': 'masked_mse'}],
        ),
        write_stage(
            folder / 'two.yaml', cache=caches[24], model=detects_all, optim={'epochs': 2, 'accumulate': 2},
            distill=[{'loss': 'mgd', 'weight': 1.0, 'normalize': 'mean', 'scale': 'teacher_std'}],
        ),
    ]  # fmt: skip
    starts = []

    class Watched(Optimization):
        """Built at the start of each stage."""

        def __init__(self, detector: Any, *rest: Any, **options: Any) -> None:
            starts.append({name: value.clone() for name, value in detector.module.state_dict().items()})
            super().__init__(detector, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mtpd_train.training.loop.Optimization', Watched)
        output = train(*files, '--out', folder / 'run').output
    return Finished(folder / 'run', files, output, starts)


def load(path: Path) -> Any:
    return torch.load(path, map_location='cpu', weights_only=True)


def test_what_is_in_the_folder(finished: Finished) -> None:
    names = {str(path.relative_to(finished.out)) for path in finished.out.rglob('*') if path.is_file()}
    student = {'student.pth', 'student_config.py'}
    of_stage = student | {'epoch_1.pth', 'epoch_2.pth', 'best.pth'}
    in_stages = {f'stage{k}/{name}' for k in (1, 2) for name in of_stage}
    assert names == {'.lock', 'metrics.jsonl', 'run.json'} | student | in_stages
    assert (finished.out / 'student.pth').read_bytes() == (finished.out / 'stage2' / 'student.pth').read_bytes()


def test_distillation_losses_fall_in_both_stages(finished: Finished, records: Records) -> None:
    trained = records(finished.out, 'train')
    assert all(math.isfinite(value) for record in trained for value in record['losses'].values())
    for stage, loss in ((1, 'masked_mse'), (2, 'mgd')):
        first, last = (
            [record['losses'] for record in trained if (record['stage'], record['epoch']) == (stage, epoch)][-1]
            for epoch in (1, 2)
        )
        names = {f'distill/{loss}/{level}' for level in ('p2', 'p3', 'p4', 'p5')}
        assert first.keys() == names | {'loss_cls', 'loss_bbox', 'total'}
        assert all(last[name] < first[name] for name in names)
        assert last['total'] == pytest.approx(sum(value for name, value in last.items() if name != 'total'))


def test_metrics(finished: Finished, records: Records) -> None:
    found = records(finished.out)
    # 23 images have objects: 3 batches of 8 an epoch, two of them to a step in stage 2.
    assert [(one['kind'], one['stage'], one['epoch'], one['step']) for one in found] == [
        ('train', 1, 1, 3), ('evaluation', 1, 1, 3), ('train', 1, 2, 6), ('evaluation', 1, 2, 6),
        ('train', 2, 1, 2), ('evaluation', 2, 1, 2), ('train', 2, 2, 4), ('evaluation', 2, 2, 4),
    ]  # fmt: skip
    for record in found:
        if record['kind'] == 'train':
            assert record['images_per_second'] > 0
            assert record['seconds'] > 0
            assert 0 <= record['data_wait'] <= 1
            assert record['peak_memory'] > 2**20
            assert record['grad_norm'] > 0
            assert 0 < record['lr'] <= 2e-3
        else:
            assert record['metrics'].keys() >= {'box/AP', 'box/AP50', 'box/APs'}
            assert not any(name.startswith('mask/') for name in record['metrics'])


def test_the_student_passes_from_stage_to_stage(finished: Finished) -> None:
    passed = load(finished.out / 'stage1' / 'student.pth')['state_dict']
    first, second = finished.starts
    assert first.keys() == second.keys() == passed.keys()
    assert all(torch.equal(second[name], value) for name, value in passed.items())
    assert not torch.equal(first['neck.fpn_convs.0.conv.weight'], passed['neck.fpn_convs.0.conv.weight'])
    assert 'student of stage 1' in finished.output


def test_every_stage_has_new_adapters_optimizer_and_schedule(
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    caches: dict[int, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two stages from the same file: the second starts as the first did, but for its student."""
    starts, parts = [], []

    class Watched(Optimization):
        """Built at the start of each stage."""

        def __init__(self, model: Any, distiller: Any, *rest: Any, **options: Any) -> None:
            super().__init__(model, distiller, *rest, **options)
            adapters = {name: value.clone() for name, value in distiller.state_dict().items()}
            starts.append((adapters, len(self.optimizer.state), self.schedule.get_last_lr()))
            parts.append((distiller, self.optimizer, self.schedule))

    monkeypatch.setattr('mtpd_train.training.loop.Optimization', Watched)
    settings = {'data': {'val': None}, 'optim': {'schedule': 'onecycle'}, 'distill': [{'loss': 'masked_mse'}]}
    stage = write_stage(tmp_path / 'stage.yaml', cache=caches[16], **settings)
    train(stage, stage, '--out', tmp_path / 'run')
    (fresh, num_states, rate), (fresh_again, num_states_again, rate_again) = starts
    assert all(torch.equal(value, fresh_again[name]) for name, value in fresh.items())
    assert (num_states, rate) == (num_states_again, rate_again)
    assert num_states == 0
    # All of it had changed in between.
    distiller, optimizer, schedule = parts[0]
    assert not any(torch.equal(value, fresh[name]) for name, value in distiller.state_dict().items() if value.ndim)
    assert len(optimizer.state) > 0
    assert schedule.get_last_lr() != rate


def test_run_json(finished: Finished, caches: dict[int, Path]) -> None:
    content = json.loads((finished.out / 'run.json').read_bytes())
    assert content['stages']['2']['distill'][0]['mask_ratio'] == 0.65
    assert content['stages']['1']['seed'] == 0
    assert content['stages']['1']['optim']['momentum'] == 0.9
    for cache in caches.values():
        manifest = json.loads((cache / 'manifest.json').read_bytes())
        assert content['caches'][str(cache)]['fingerprint'] == manifest['description']['fingerprint']
    assert content['versions'].keys() >= {'mtpd', 'torch', 'mmdet', 'python'}


def test_student_pth_has_plain_values_and_the_students_own_keys(finished: Finished) -> None:
    content = load(finished.out / 'student.pth')
    assert content.keys() == {'state_dict', 'meta'}
    assert content['meta']['dataset_meta'] == {'classes': ('circle', 'square', 'triangle', 'star', 'cross', 'ring')}
    assert (content['meta']['stage'], content['meta']['epochs']) == (2, 2)
    assert {name.split('.')[0] for name in content['state_dict']} == {'backbone', 'neck', 'bbox_head'}
    assert content['state_dict']['bbox_head.retina_cls.weight'].shape[0] == 2 * 6


def test_evaluations_are_recorded_class_by_class(finished: Finished, records: Records) -> None:
    for record in records(finished.out, 'evaluation'):
        class_ap = record['class_ap']['box']
        assert list(class_ap) == ['circle', 'square', 'triangle', 'star', 'cross', 'ring']
        present = [value for value in class_ap.values() if value >= 0]
        assert sum(present) / len(present) == pytest.approx(record['metrics']['box/AP'])


@pytest.mark.parametrize('number', [1, 2], ids=['divisor', 'letterbox'])
def test_mmdet_predicts_the_same_boxes(number: int, finished: Finished) -> None:
    """With the student as mmdet loads it: nothing missing, nothing left over."""
    prepare()
    from mmdet.apis import inference_detector, init_detector
    from mmengine.runner import load_checkpoint

    folder = finished.out / f'stage{number}'
    config, checkpoint = str(folder / 'student_config.py'), str(folder / 'student.pth')
    detector = init_detector(config, checkpoint, device='cpu')
    load_checkpoint(detector, checkpoint, strict=True)
    stage = build_stages(load_stages(finished.files))[number - 1]
    stage.student.module.load_state_dict(load(folder / 'student.pth')['state_dict'])
    dataset = stage.val_set
    assert dataset is not None
    stage.student.module.eval()
    ours, _ = detect(stage.student, dataset, batch_size=3, num_workers=0)
    category_ids = [category.id for category in dataset.coco.categories]
    assert detector.dataset_meta['classes'] == stage.classes
    total = 0
    for image in dataset.coco.images:
        result = inference_detector(detector, str(dataset.folder / image.file_name)).pred_instances
        mine = [one for one in ours if one['image_id'] == image.id]
        boxes = torch.tensor([one['bbox'] for one in mine])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(result.bboxes, boxes, rtol=0, atol=1e-3)
        torch.testing.assert_close(result.scores, torch.tensor([one['score'] for one in mine]), rtol=0, atol=1e-5)
        assert [category_ids[label] for label in result.labels.tolist()] == [one['category_id'] for one in mine]
        total += len(mine)
    assert total > 100


@pytest.mark.parametrize('number', [1, 2], ids=['divisor', 'letterbox'])
def test_mmdets_test_tool_finds_the_same_ap(number: int, finished: Finished, records: Records, tmp_path: Path) -> None:
    prepare()
    from mmengine.config import Config
    from mmengine.runner import Runner

    folder = finished.out / f'stage{number}'
    config = Config.fromfile(str(folder / 'student_config.py'))
    config.work_dir, config.load_from = str(tmp_path), str(folder / 'student.pth')
    config.test_dataloader.num_workers = 0
    config.log_level = 'ERROR'
    # A runner's default name has seconds; a second runner within the same one would share its name, which warns.
    config.experiment_name = f'stage{number}'
    metrics = Runner.from_cfg(config).test()
    ours = [one['metrics'] for one in records(finished.out, 'evaluation') if one['stage'] == number][-1]
    assert ours['box/AP50'] > 0
    # mmdet rounds to three digits.
    assert {name: metrics[f'coco/bbox_{name}'] for name in ('mAP', 'mAP_50', 'mAP_s', 'mAP_m')} == pytest.approx(
        {'mAP': ours['box/AP'], 'mAP_50': ours['box/AP50'], 'mAP_s': ours['box/APs'], 'mAP_m': ours['box/APm']},
        abs=6e-4,
    )


# From Python 3.12 on, a fork of a process with several threads warns; torch's DataLoader forks, and torch has threads.
@pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')
def test_the_same_seed_gives_the_same_student(finished: Finished, train: Callable[..., Any], tmp_path: Path) -> None:
    """With a worker process, too, while the cache is read in a thread."""
    train(finished.files[0], '--out', tmp_path / 'run', '--set', 'data.workers=1')
    first, second = (load(path / 'stage1' / 'student.pth')['state_dict'] for path in (finished.out, tmp_path / 'run'))
    assert all(torch.equal(first[name], value) for name, value in second.items())
