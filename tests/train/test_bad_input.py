"""What users get wrong: one clear line, exit code 1, and nothing left behind; and odd input that must simply work."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mtpd.cache.writing.writer import CacheWriter
from mtpd_train.cli import main

WriteStage = Callable[..., Path]
TrainError = Callable[..., str]
DISTILL = [{'loss': 'masked_mse'}]


@pytest.fixture
def fails(write_stage: WriteStage, train_error: TrainError, tmp_path: Path) -> Callable[..., str]:
    """`fails(key=value, ...)` trains such a stage, which must fail before anything is written: the error."""

    def run(*options: object, **changes: Any) -> str:
        stage = write_stage(tmp_path / 'stage.yaml', **changes)
        line = train_error(stage, '--out', tmp_path / 'run', *options)
        assert not (tmp_path / 'run').exists()
        return line

    return run


@pytest.fixture
def copied_set(synthetic_set: Path, tmp_path: Path) -> Path:
    """A copy of the set to spoil."""
    shutil.copytree(synthetic_set, tmp_path / 'coco')
    return tmp_path / 'coco'


def edit(coco: Path, change: Callable[[dict[str, Any]], object], split: str = 'train2017') -> None:
    path = coco / 'annotations' / f'instances_{split}.json'
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_typo_and_a_missing_stage_file(write_stage: WriteStage, train_error: TrainError, tmp_path: Path) -> None:
    path = write_stage(tmp_path / 'a.yaml', optim={'epoch': 3})
    result = CliRunner().invoke(main, [str(path), '--out', str(tmp_path / 'run')])
    assert result.exit_code == 1
    assert result.stderr.startswith(f'Error: {path} has ')
    assert 'optim.epoch  unknown key; did you mean epochs?' in result.stderr
    line = train_error(tmp_path / 'b.yaml', '--out', tmp_path / 'run')
    assert line == f'Error: there is no stage file {tmp_path / "b.yaml"}; check the path'
    assert not (tmp_path / 'run').exists()


def test_caches_that_are_not_there(
    fails: Callable[..., str],
    extract_teacher: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 'nowhere: no cache here' in fails(cache=tmp_path / 'nowhere', distill=DISTILL)

    def die(writer: CacheWriter) -> None:
        del writer
        raise KeyboardInterrupt

    monkeypatch.setattr(CacheWriter, 'finish', die)
    unfinished = tmp_path / 'unfinished'
    with pytest.raises(AssertionError):
        extract_teacher(16, unfinished)
    assert 'this cache has not finished' in fails(cache=unfinished, distill=DISTILL)


def test_a_cache_of_other_annotations(fails: Callable[..., str], caches: dict[int, Path], copied_set: Path) -> None:
    edit(copied_set, lambda document: document['info'].update(description='another'))
    line = fails(cache=caches[16], distill=DISTILL, data={'coco': str(copied_set)})
    assert f'a different annotation file than {copied_set}' in line


def test_a_cache_of_some_images(
    fails: Callable[..., str], extract_teacher: Callable[..., Path], tmp_path: Path
) -> None:
    cache = extract_teacher(16, tmp_path / 'cache', '--limit', 20)
    line = fails(cache=cache, distill=DISTILL)
    assert 'lacks 3 of the images' in line
    assert 'the first is 21' in line


def test_a_cache_of_one_view(
    fails: Callable[..., str],
    extract_teacher: Callable[..., Path],
    write_stage: WriteStage,
    train: Callable[..., Any],
    tmp_path: Path,
) -> None:
    cache = extract_teacher(16, tmp_path / 'cache', '--views', 'plain', '--levels', 'p3,p4')
    line = fails(cache=cache, distill=DISTILL)
    assert 'holds the view plain and data.flip is 0.5, which needs flip' in line
    assert 'set data.flip to 0' in line
    line = fails(cache=cache, distill=[{'loss': 'masked_mse', 'levels': ['p3', 'p5']}], data={'flip': 0.0})
    assert 'cannot distil p5' in line
    assert 'the teacher p3, p4' in line
    train(write_stage(tmp_path / 'a.yaml', cache=cache, distill=DISTILL, data={'flip': 0.0}), '--out', tmp_path / 'a')
    # The baseline of a distilled run reads no view at all.
    train(write_stage(tmp_path / 'b.yaml', cache=cache, distill=[]), '--out', tmp_path / 'b')


def test_a_damaged_cache_names_the_shard(
    write_stage: WriteStage, train_error: TrainError, caches: dict[int, Path], tmp_path: Path
) -> None:
    """Found when the image is read, in the middle of the training."""
    damaged = tmp_path / 'cache'
    shutil.copytree(caches[16], damaged)
    (shard,) = [path for path in (damaged / '96x128' / 'plain' / 'p3' / 'c').rglob('*') if path.is_file()]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    stage = write_stage(tmp_path / 'stage.yaml', cache=damaged, distill=DISTILL, data={'flip': 0.0})
    assert str(shard) in train_error(stage, '--out', tmp_path / 'run')


def test_students(fails: Callable[..., str], tmp_path: Path) -> None:
    assert 'retinanet_r5_fpn' in fails(student='retinanet_r5_fpn_1x_coco')
    assert 'nowhere.py: there is no such file' in fails(student=str(tmp_path / 'nowhere.py'))


def test_a_student_without_a_neck(fails: Callable[..., str], caches: dict[int, Path]) -> None:
    line = fails(student='faster-rcnn_r50-caffe_c4-1x_coco', cache=caches[16], distill=DISTILL)
    assert 'FasterRCNN has no neck' in line


def test_the_next_stage_needs_the_same_student(
    write_stage: WriteStage, train_error: TrainError, tmp_path: Path
) -> None:
    """Said before stage 1 is trained."""
    one = write_stage(tmp_path / 'one.yaml')
    two = write_stage(tmp_path / 'two.yaml', model={'neck.out_channels': 16, 'bbox_head.in_channels': 16})
    line = train_error(one, two, '--out', tmp_path / 'run')
    assert 'stage 2 starts from the student of stage 1, but that is a different network' in line
    assert 'neck.lateral_convs.0.conv.weight is (32, 8, 1, 1) there and (16, 8, 1, 1) here' in line
    gone = write_stage(tmp_path / 'gone.yaml', student=str(tmp_path / 'nowhere.py'))
    line = train_error(one, gone, '--out', tmp_path / 'run')
    assert line.startswith(f'Error: {gone} line 1, student: ')
    assert 'nowhere.py: there is no such file' in line
    assert not (tmp_path / 'run').exists()


def test_all_stages_at_once(write_stage: WriteStage, copied_set: Path, caches: dict[int, Path], tmp_path: Path) -> None:
    """Each problem with its file, line and key, and nothing that only follows from another problem."""
    (copied_set / 'train2017' / '000000000003.jpg').unlink()
    files = [
        write_stage(tmp_path / 'one.yaml', student='retinanet_r5_fpn_1x_coco', data={'coco': str(tmp_path)}),
        write_stage(tmp_path / 'two.yaml', cache=caches[16], distill=[{'loss': 'mgd', 'levels': ['p9']}]),
        write_stage(tmp_path / 'three.yaml'),
        write_stage(tmp_path / 'four.yaml', data={'coco': str(copied_set)}, init={'checkpoint': 'nowhere.pth'}),
    ]
    for path in files:
        path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    options = ['--set', 'data.val=val2016', '--out', str(tmp_path / 'run')]
    result = CliRunner().invoke(main, [*map(str, files), *options])
    assert result.exit_code == 1
    first, *rows = result.stderr.splitlines()
    assert first == 'Error: the stages have 8 problems'
    found = [re.split('  +', row.strip(), maxsplit=2) for row in rows]
    assert [(where.replace(f'{tmp_path}/', ''), key) for where, key, _ in found] == [
        ('one.yaml line 7', 'data.train'),
        ('one.yaml line 2', 'student'),
        ('two.yaml with --set', 'data.val'),
        ('two.yaml line 19', 'distill'),
        ('three.yaml with --set', 'data.val'),
        ('four.yaml line 8', 'data.train'),
        ('four.yaml with --set', 'data.val'),
        ('four.yaml line 4', 'init'),
    ]
    texts = [text for _, _, text in found]
    assert 'did you mean' in texts[1]
    assert 'instances_val2016.json: cannot read' in texts[2]
    assert 'cannot distil p9' in texts[3]
    assert '1 of 24 images' in texts[5]
    assert not (tmp_path / 'run').exists()


def test_data_that_is_not_there(fails: Callable[..., str], copied_set: Path) -> None:
    data = {'coco': str(copied_set)}
    assert 'instances_val2016.json: cannot read the annotation file' in fails(data=data | {'val': 'val2016'})
    (copied_set / 'train2017' / '000000000003.jpg').unlink()
    line = fails(data=data)
    assert '1 of 24 images of instances_train2017.json are missing, the first is 000000000003.jpg' in line


def test_nothing_to_evaluate_on(fails: Callable[..., str], copied_set: Path) -> None:
    edit(copied_set, lambda document: document.update(images=[], annotations=[]), 'val2017')
    line = fails(data={'coco': str(copied_set)})
    assert 'data.val' in line
    assert 'instances_val2017.json: lists no images' in line


def test_a_truncated_image_while_training(
    write_stage: WriteStage, train_error: TrainError, copied_set: Path, tmp_path: Path
) -> None:
    image = copied_set / 'train2017' / '000000000003.jpg'
    image.write_bytes(image.read_bytes()[:-200])
    stage = write_stage(tmp_path / 'stage.yaml', data={'coco': str(copied_set)})
    assert f'{image}: not a complete image' in train_error(stage, '--out', tmp_path / 'run')


def test_a_file_name_that_climbs_out(fails: Callable[..., str], copied_set: Path) -> None:
    edit(copied_set, lambda document: document['images'][0].update(file_name='../../etc/passwd'))
    assert "file_name '../../etc/passwd' leaves the image folder" in fails(data={'coco': str(copied_set)})


def test_categories_of_training_and_evaluation_differ(fails: Callable[..., str], copied_set: Path) -> None:
    edit(copied_set, lambda document: document['categories'][0].update(name='disc'), 'val2017')
    line = fails(data={'coco': str(copied_set)})
    assert 'instances_val2017.json: its categories differ from those of' in line
    assert "json: id 1 is 'disc' here and " in line
    edit(copied_set, lambda document: document['categories'].append({'id': 9, 'name': 'kite'}))
    edit(copied_set, lambda document: document['categories'][0].update(name='disc'))
    assert ": id 9 is missing here and 'kite' there; choose another data.val" in fails(data={'coco': str(copied_set)})


def test_categories_that_make_no_classes(fails: Callable[..., str], copied_set: Path) -> None:
    edit(copied_set, lambda document: document['categories'][1].update(name=document['categories'][0]['name']))
    line = fails(data={'coco': str(copied_set)})
    assert re.search(
        "instances_train2017.json: categories 1 and 2 are both named '.*'; class names must be unique", line
    )
    edit(copied_set, lambda document: document.update(categories=[], annotations=[]))
    assert "'categories' is empty, so there are no classes to learn" in fails(data={'coco': str(copied_set)})


def test_nothing_to_train_on(fails: Callable[..., str], copied_set: Path) -> None:
    def shrink(document: dict[str, Any]) -> None:
        for number, annotation in enumerate(document['annotations']):
            annotation.update({'iscrowd': True} if number < 3 else {'bbox': [0.1, 0.2, 0.3, 0.4]})

    edit(copied_set, shrink)
    line = fails(data={'coco': str(copied_set)})
    assert 'no image has a usable object' in line
    assert 'thinner than 1 px, 3 crowds' in line


def test_half_precision_on_a_cpu(fails: Callable[..., str]) -> None:
    line = fails('--device', 'cpu', optim={'precision': 'fp16'})
    assert line == 'Error: optim.precision is fp16, which needs a GPU; on a CPU use fp32 or bf16'


def test_a_warmup_longer_than_the_training(write_stage: WriteStage, train_error: TrainError, tmp_path: Path) -> None:
    stage = write_stage(tmp_path / 'stage.yaml', optim={'warmup_iters': 500})
    line = train_error(stage, '--out', tmp_path / 'run')
    assert 'optim.warmup_iters is 500, but the training has only 3 optimizer steps' in line


def test_images_and_annotations_that_must_work(
    write_stage: WriteStage,
    train: Callable[..., Any],
    records: Callable[..., list[dict[str, Any]]],
    copied_set: Path,
    tmp_path: Path,
) -> None:
    """A grey, a CMYK and an empty image, a crowd, a one-pixel box and one that leaves the image; no evaluation.

    What of it is not used is told once, though two stages use it.
    """

    def spoil(document: dict[str, Any]) -> None:
        images = document['images']
        for record, mode in zip(images, ('L', 'CMYK'), strict=False):
            path = copied_set / 'train2017' / record['file_name']
            Image.open(path).convert(mode).save(path)
        boxes = ([5, 5, 1, 1], [-20, -20, 60, 60], [0, 0, 500, 500], [3, 3, 0, 0])
        for number, box in enumerate(boxes):
            area = int(np.prod(box[2:]))
            annotation = {'id': 10**6 + number, 'image_id': images[number]['id'], 'bbox': box, 'area': area}
            document['annotations'].append(annotation | {'category_id': 1, 'iscrowd': int(number == 2)})
        images.append(images[0] | {'id': 10**6})

    edit(copied_set, spoil)
    edit(copied_set, lambda document: document.update(annotations=[]), 'val2017')
    data = {'coco': str(copied_set)}
    stages = [
        write_stage(tmp_path / 'one.yaml', data=data),
        write_stage(tmp_path / 'two.yaml', data=data | {'val': None}),
    ]
    result = train(*stages, '--out', tmp_path / 'run')
    path = copied_set / 'annotations' / 'instances_train2017.json'
    (account,) = [line for line in result.stdout.splitlines() if line.startswith(f'{path}: ')]
    assert '1 of ' in account
    assert '1 without width or height' in account
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith('warning: ')]
    assert f'{path}: 1 image files' in warning
    one, evaluation, two = records(tmp_path / 'run')
    assert (one['kind'], evaluation['kind'], two['kind']) == ('train', 'evaluation', 'train')
    assert evaluation['metrics']['box/AP'] == -1
    assert 'not_finite' not in one
