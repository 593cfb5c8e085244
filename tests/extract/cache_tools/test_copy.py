"""`mtpd-cache copy`: copies by the command line, their cards, and copies that are trained from."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

import mtpd.cache
from mtpd.errors import CacheIncompleteError
from mtpd_train.cli import main as mtpd_train
from stress.web_server import WebServer

Contents = Callable[[Path], dict[str, bytes]]
Run = Callable[..., Result]
STUDENT = Path(__file__).resolve().parents[3] / 'configs' / 'demo' / 'student.py'


@pytest.fixture(scope='module')
def original(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: Any) -> Path:
    """A cache of the synthetic set. Not to be changed."""
    out = tmp_path_factory.mktemp('original') / 'cache'
    command.run(out, *many_shards)
    return Path(out)


def front_matter(card: Path) -> dict[str, Any]:
    _, head, _ = card.read_text().split('---\n', 2)
    content: dict[str, Any] = yaml.safe_load(head)
    return content


def test_a_copy_with_its_card(mtpd_cache: Run, original: Path, tmp_path: Path, contents: Contents) -> None:
    copy = tmp_path / 'copy'
    result = mtpd_cache('copy', original, copy, '--license', 'apache-2.0')
    assert result.stdout.startswith(f'{copy}: 24 images, ')
    card = copy / 'README.md'
    assert contents(copy) == contents(original) | {'README.md': card.read_bytes()}
    assert front_matter(card)['license'] == 'apache-2.0'
    record = json.loads(mtpd_cache('info', '--json', copy).stdout)[0]
    text = card.read_text()
    assert record['fingerprint_sha256'] in text
    assert record['fingerprint']['data']['annotations'] in text
    cache = mtpd.cache.open(copy)
    for level in cache.levels:
        errors = [cache.errors(image_id, view)[level.name] for image_id in cache.image_ids for view in cache.views]
        row = re.search(rf'\| {level.name} \| {level.stride} \| {level.channels} \| .* \| (\S+) \|', text)
        assert row is not None
        assert float(row[1]) == pytest.approx(sum(errors) / len(errors), abs=6e-5)
    assert 'sound' in mtpd_cache('verify', copy).stdout
    assert mtpd_cache('copy', original, copy).exit_code == 0  # complete already


def test_the_teachers_licence_follows_its_features(mtpd_cache: Run, command: Any, tmp_path: Path) -> None:
    command.run(tmp_path / 'cache', '--limit', 2, '--license', 'dinov3-license')
    assert 'dinov3-license' in mtpd_cache('info', tmp_path / 'cache').stdout
    mtpd_cache('copy', tmp_path / 'cache', tmp_path / 'copy')
    assert front_matter(tmp_path / 'copy' / 'README.md')['license'] == 'dinov3-license'
    mtpd_cache('copy', tmp_path / 'copy', tmp_path / 'again', '--license', 'mit')
    assert front_matter(tmp_path / 'again' / 'README.md')['license'] == 'mit'


def test_a_part_is_trained_from(
    mtpd_cache: Run, original: Path, synthetic_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two levels, one view and the images of another annotation file: to the trainer it is a cache of that file."""
    document = json.loads((synthetic_set / 'annotations' / 'instances_train2017.json').read_text())
    document['images'] = document['images'][3:9]
    kept = {image['id'] for image in document['images']}
    document['annotations'] = [one for one in document['annotations'] if one['image_id'] in kept]
    subset = tmp_path / 'subset.json'
    subset.write_text(json.dumps(document))
    mtpd_cache('copy', original, tmp_path / 'part', '--levels', 'p3,p4', '--views', 'plain', '--images', subset)
    part = mtpd.cache.open(tmp_path / 'part')
    assert set(part.image_ids) == kept
    stage = {
        'student': str(STUDENT),
        'cache': str(tmp_path / 'part'),
        'init': {'backbone': 'none'},
        'distill': [{'loss': 'masked_mse'}],
        'data': {
            'train': {'images': str(synthetic_set / 'train2017'), 'annotations': str(subset)},
            'val': None, 'batch_size': 2, 'workers': 0, 'flip': 0,
        },
        'optim': {'lr': 1e-3, 'epochs': 1},
    }  # fmt: skip
    (tmp_path / 'stage.yaml').write_text(json.dumps(stage))
    options = [str(tmp_path / 'stage.yaml'), '--out', str(tmp_path / 'run'), '--device', 'cpu']
    mtpd_train.main(options, standalone_mode=False)
    assert (tmp_path / 'run' / 'student.pth').exists()
    # The cache of all images is one of another file.
    (tmp_path / 'stage.yaml').write_text(json.dumps(stage | {'cache': str(original)}))
    with pytest.raises(SystemExit):
        mtpd_train.main([options[0], '--out', str(tmp_path / 'other')], standalone_mode=False)
    assert 'was made from a different annotation file' in capsys.readouterr().err


@pytest.mark.parametrize('mirror', [None, 'mirror'])
def test_a_cache_by_url(
    mirror: str | None, original: Path, synthetic_set: Path, tmp_path: Path, mtpd_cache: Run, contents: Contents
) -> None:
    """The trainer learns the same from a web server as from the folder, and a copy from there is the same cache."""
    pytest.importorskip('obstore')
    stage = {
        'student': str(STUDENT),
        'init': {'backbone': 'none'},
        'distill': [{'loss': 'masked_mse'}],
        'data': {'coco': str(synthetic_set), 'val': None, 'batch_size': 4, 'workers': 0},
        'optim': {'type': 'adamw', 'lr': 1e-4, 'epochs': 1, 'grad_clip': 1},
    }
    losses = {}
    with WebServer(original).running() as web:
        for name, cache in (('folder', str(original)), ('url', f'{web.url}/')):
            data = stage['data'] | ({} if mirror is None else {'mirror': str(tmp_path / mirror)})  # type: ignore[operator]
            (tmp_path / 'stage.yaml').write_text(json.dumps(stage | {'cache': cache, 'data': data}))
            out = tmp_path / name
            options = [str(tmp_path / 'stage.yaml'), '--out', str(out), '--device', 'cpu']
            mtpd_train.main(options, standalone_mode=False)
            records = [json.loads(line) for line in (out / 'metrics.jsonl').read_text().splitlines()]
            losses[name] = [one['losses'] for one in records if 'losses' in one]
            mtpd_train.main([*options, '--resume'], standalone_mode=False)  # the cache is on record by its URL
        mtpd_cache('copy', web.url, tmp_path / 'copy')
    assert losses['url'] == losses['folder'] != []
    assert contents(tmp_path / 'copy') == contents(original) | {'README.md': (tmp_path / 'copy/README.md').read_bytes()}


def test_a_killed_copy_resumes(original: Path, tmp_path: Path, mtpd_cache: Run, contents: Contents) -> None:
    """Stopped by the terminal after its first groups, and by the kernel; the same command completes it."""
    copy = tmp_path / 'copy'
    script = f"""
import os, signal
from mtpd.cache.writing.writer import CacheWriter
from mtpd_extract.cache_tools.cli import main
commit, told = CacheWriter.commit, []
def counted(self, group):
    told.append(group)
    result = commit(self, group)
    if len(told) == 2:
        os.kill(os.getpid(), NUMBER)
    return result
CacheWriter.commit = counted
main(['copy', {str(original)!r}, {str(copy)!r}])
"""
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        command = [sys.executable, '-c', script.replace('NUMBER', str(int(number)))]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        with pytest.raises(CacheIncompleteError):
            mtpd.cache.open(copy)
    mtpd_cache('copy', original, copy)
    assert contents(copy) == contents(original) | {'README.md': (copy / 'README.md').read_bytes()}


def test_refusals(mtpd_cache: Run, original: Path, synthetic_set: Path, tmp_path: Path) -> None:
    annotations = synthetic_set / 'annotations' / 'instances_train2017.json'
    document = json.loads(annotations.read_text())
    document['images'][0]['width'] += 1
    document['annotations'] = []
    (tmp_path / 'other.json').write_text(json.dumps(document))
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'a').write_text('')
    for options, problem in (
        ([original], 'is the cache itself'),
        ([tmp_path / 'full'], 'the folder is not empty'),
        ([tmp_path / 'copy', '--levels', 'p9'], 'not p9'),
        ([tmp_path / 'copy', '--images', tmp_path / 'other.json'], 'give an annotation file of the same images'),
    ):
        result = mtpd_cache('copy', original, *options, code=1)
        assert problem in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / 'copy').exists()
