"""Several processes learn from a teacher in the loop and from a teacher's RoI head: as one process would."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Records = Callable[..., list[dict[str, Any]]]
# Nothing is drawn at random, and as many proposals in every image: a RoI head divides by their number.
STUDENT = """\
_base_ = {base!r}
_all = dict(type='PseudoSampler', _delete_=True)
model = dict(
    train_cfg=dict(
        rpn=dict(sampler=_all),
        rpn_proposal=dict(nms_pre=6, max_per_img=24, nms=dict(type='nms', iou_threshold=1.0), min_bbox_size=-1),
        rcnn=dict(sampler=_all),
    ),
)
"""
OPTIM = {'type': 'sgd', 'lr': 2e-3, 'epochs': 3, 'warmup_iters': 0}


@pytest.fixture(scope='module')
def teacher(
    tiny_two_stage: Path, random_weights: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The settings of a stage with a Faster R-CNN of two classes in the loop."""
    config = tmp_path_factory.mktemp('teacher') / 'teacher.py'
    config.write_text(f'_base_ = {str(tiny_two_stage)!r}\nmodel = dict(roi_head=dict(bbox_head=dict(num_classes=2)))\n')
    return {'teacher': str(config), 'checkpoint': str(random_weights(config, num_classes=2))}


@pytest.fixture
def stage(teacher: dict[str, str], tiny_two_stage: Path, uniform_set: Path, write_stage: Any, tmp_path: Path) -> Path:
    student = tmp_path / 'student.py'
    student.write_text(STUDENT.format(base=str(tiny_two_stage)))
    distill = [
        # Boxes would be divided by the open gates, of which each process has its own number.
        {'loss': 'tar_head', 'class_gate': 'none', 'box_weight': 0.0},
        {'loss': 'masked_mse', 'levels': ['p3'], 'scale': 'none', 'adapter': 'always'},
    ]
    data = {'coco': uniform_set, 'val': None, 'batch_size': 4, 'geometry': {'scale': '96x96'}}
    path: Path = write_stage(
        tmp_path / 'stage.yaml',
        student=str(student),
        model={'backbone.norm_eval': True},
        **teacher,
        distill=distill,
        data=data,
        optim=OPTIM,
    )
    return path


def test_two_processes_learn_as_one_does(
    stage: Path, train: Any, start_two: Any, records: Records, tmp_path: Path
) -> None:
    one, two = tmp_path / 'one', tmp_path / 'two'
    train(stage, '--out', one)
    programs = start_two(stage, '--out', two)
    assert [program.wait() for program in programs] == [0, 0], programs[0].stderr + programs[1].stderr
    logs = [records(run, 'train') for run in (one, two)]
    assert len(logs[0]) == len(logs[1]) == 3
    for single, parallel in zip(*logs, strict=True):
        assert all(parallel['losses'][name] > 0 for name in ('distill/tar_head/class', 'distill/masked_mse/p3'))
        assert parallel['losses'] == pytest.approx(single['losses'], rel=1e-5)
        assert parallel['decay'] == single['decay']


@pytest.mark.slow
def test_they_go_on_after_a_signal(
    stage: Path, start_two: Any, wait_for: Callable[[Callable[[], object]], None], tmp_path: Path
) -> None:
    """With a teacher in the loop, gates and losses that divide by what they count in a process."""
    document = json.loads(stage.read_text())
    document['distill'] = [{'loss': 'tar_head'}, {'loss': 'fgd'}, {'loss': 'mgd'}, {'loss': 'pkd'}]
    document['optim']['epochs'] = 3
    stage.write_text(json.dumps(document))
    whole, cut = tmp_path / 'whole', tmp_path / 'cut'
    assert [one.wait() for one in start_two(stage, '--out', whole)] == [0, 0]
    programs = start_two(stage, '--out', cut)
    wait_for((cut / 'stage1' / 'epoch_1.pth').exists)
    programs[1].kill(signal.SIGTERM)
    assert [one.wait() for one in programs] == [130, 130], programs[0].stderr + programs[1].stderr
    assert [one.wait() for one in start_two(stage, '--out', cut, '--resume')] == [0, 0]
    found, wanted = (torch.load(run / 'student.pth', weights_only=True)['state_dict'] for run in (cut, whole))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
