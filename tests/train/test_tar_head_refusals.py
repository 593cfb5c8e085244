"""What `tar_head` cannot do is said in one line, before anything is trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.data.coco import read_annotations

ONE_STAGE = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'retinanet_tiny.py'
Make = Callable[..., Path]


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory, extract_two_stage: Make) -> Path:
    """The cache of a two-stage teacher. Not to be changed."""
    return extract_two_stage(tmp_path_factory.mktemp('two_stage') / 'cache')


def test_refusals(
    tmp_path: Path,
    train_error: Callable[..., str],
    write_stage: Make,
    cache: Path,
    extract: Callable[..., Any],
    random_weights: Make,
    synthetic_set: Path,
    tiny_two_stage: Path,
    extract_two_stage: Make,
) -> None:
    two_stage = {'student': str(tiny_two_stage), 'cache': cache, 'distill': [{'loss': 'tar_head'}]}

    def error(**changes: Any) -> str:
        return train_error(write_stage(tmp_path / 'stage.yaml', **two_stage | changes), '--out', tmp_path / 'run')

    one_stage = write_stage(tmp_path / 'one.yaml', cache=cache, distill=[{'loss': 'tar_head'}])
    assert 'the student RetinaNet has no RoI head' in train_error(one_stage, '--out', tmp_path / 'run')
    dense = ('--teacher', ONE_STAGE, '--checkpoint', random_weights(ONE_STAGE), '--coco', synthetic_set)
    extract(*dense, '--codec', 'int8', '--out', tmp_path / 'dense')
    assert 'its teacher has no RoI head' in error(cache=tmp_path / 'dense')
    other = extract_two_stage(tmp_path / 'nine', '--views', 'plain', num_classes=9)
    message = error(cache=other)
    assert 'has 9 classes, the student 6' in message
    partial = extract_two_stage(tmp_path / 'partial', '--levels', 'p3,p4,p5')
    assert 'none of stride 4' in error(cache=partial)
    live = {'cache': None, 'teacher': str(ONE_STAGE), 'checkpoint': random_weights(ONE_STAGE)}
    assert 'has no RoI head, or one that mtpd cannot run' in error(**live)
    live |= {
        'student': str(tiny_two_stage),
        'teacher': str(tiny_two_stage),
        'checkpoint': random_weights(tiny_two_stage),
    }
    stored = {'loss': 'tar_head', 'mode': 'cached_rois'}
    assert 'has no stored proposals' in error(**live, distill=[stored])
    assert 'extract it with --rois 512, or set mode to head_on_gpu' in error(cache=partial, distill=[stored])
    norms = extract_two_stage(tmp_path / 'norms', '--views', 'plain', norms=True)
    assert 'are taken before the norms of its neck' in error(cache=norms)
    assert 'tar_head twice' in error(distill=[{'loss': 'tar_head'}, {'loss': 'tar_head'}])


def test_classes_in_another_order(
    tmp_path: Path,
    train_error: Callable[..., str],
    train: Callable[..., Any],
    write_stage: Make,
    extract: Callable[..., Any],
    random_weights: Make,
    synthetic_set: Path,
    tiny_two_stage: Path,
) -> None:
    """Labels are compared by number, so they must mean the same: of stored and of live heads, and of inherited ones."""
    names = [one.name for one in read_annotations(synthetic_set / 'annotations/instances_train2017.json').categories]
    state = torch.load(random_weights(tiny_two_stage), weights_only=True)['state_dict']
    caches, checkpoints = {}, {}
    for order, classes in (('same', names), ('reversed', names[::-1])):
        checkpoints[order] = tmp_path / f'{order}.pth'
        torch.save({'state_dict': state, 'meta': {'dataset_meta': {'classes': classes}}}, checkpoints[order])
        source = ('--teacher', tiny_two_stage, '--checkpoint', checkpoints[order], '--coco', synthetic_set)
        caches[order] = tmp_path / order
        extract(*source, '--codec', 'fp16', '--rois', '8', '--out', caches[order])

    def stage(**changes: Any) -> Path:
        two_stage = {'student': str(tiny_two_stage), 'distill': [{'loss': 'tar_head'}]}
        return write_stage(tmp_path / 'stage.yaml', **two_stage | changes)

    live = {'teacher': str(tiny_two_stage), 'checkpoint': checkpoints['reversed']}
    inheriting = {'distill': [], 'init': {'inherit': ['head']}}
    stored = {'distill': [{'loss': 'tar_head', 'mode': 'cached_rois'}]}
    for changes in ({}, live, inheriting, stored):
        given = changes if changes is live else {'cache': caches['reversed']} | changes
        message = train_error(stage(**given), '--out', tmp_path / 'run')
        assert f"is '{names[-1]}', the student's is '{names[0]}'; use a teacher" in message
    train(stage(cache=caches['same']), '--out', tmp_path / 'run', '--dry-run')
    inheriting['init'] = {'inherit': ['neck']}
    train(stage(cache=caches['reversed'], **inheriting), '--out', tmp_path / 'run', '--dry-run')


def test_a_cache_without_a_record_is_to_be_extracted_again(
    tmp_path: Path, train_error: Callable[..., str], write_stage: Make, cache: Path, tiny_two_stage: Path
) -> None:
    """As an earlier mtpd left it."""
    import shutil

    import safetensors.torch

    from mtpd.cache.format.manifest import FileRecord, read_manifest, write_manifest
    from mtpd.system.files import sha256_bytes

    old = tmp_path / 'old'
    shutil.copytree(cache, old)
    plain = safetensors.torch.save(safetensors.torch.load((old / 'teacher.safetensors').read_bytes()))
    (old / 'teacher.safetensors').write_bytes(plain)
    manifest = read_manifest(old)
    files = manifest.files | {'teacher.safetensors': FileRecord(num_bytes=len(plain), sha256=sha256_bytes(plain))}
    write_manifest(old, manifest.model_copy(update={'files': files}))
    assert mtpd.cache.open(old).teacher_weights().keys() == mtpd.cache.open(cache).teacher_weights().keys()
    stage = write_stage(tmp_path / 'stage.yaml', student=str(tiny_two_stage), cache=old, distill=[{'loss': 'tar_head'}])
    assert 'extract the cache again' in train_error(stage, '--out', tmp_path / 'run')
