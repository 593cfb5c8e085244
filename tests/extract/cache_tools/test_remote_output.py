"""`mtpd-extract --out s3://...`: the cache that a folder would have got, also after interruptions and by parts."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import mtpd.cache
from mtpd.cache.object_store import ObjectStore
from mtpd.cache.writing import lease
from mtpd.cache.writing.writer import CacheWriter
from mtpd.errors import CacheIncompleteError
from mtpd_train.cli import main as mtpd_train
from stress.web_server import WebServer

pytest.importorskip('obstore')
pytestmark = pytest.mark.filterwarnings('ignore:datetime.datetime.utcnow:DeprecationWarning')

Run = Callable[..., Result]
SILENCE = 0.5


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, 'SILENCE_SECONDS', SILENCE)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: Any) -> dict[str, bytes]:
    """Every file of the cache in a folder."""
    out = tmp_path_factory.mktemp('folder') / 'cache'
    command.run(out, *many_shards)
    files = {str(path.relative_to(out)): path for path in out.rglob('*') if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith('.')}


def objects(url: str) -> dict[str, bytes]:
    store = ObjectStore(url)
    return {file: store.read(file) for file in store.objects()}


def test_one_process_and_the_tools(
    command: Any, many_shards: Any, folder: dict[str, bytes], bucket: str, mtpd_cache: Run, tmp_path: Path
) -> None:
    url = f'{bucket}/whole'
    assert 'Dry run' in command.run(url, *many_shards, '--dry-run').stdout
    assert objects(url) == {}
    assert f'{url}: 24 images' in command.run(url, *many_shards).stdout
    assert objects(url) == folder
    assert 'already complete' in command.run(url, *many_shards).stdout
    assert 'already holds an extraction' in command.error(url, *many_shards, '--no-resume')
    assert '--overwrite deletes folders only' in command.error(url, *many_shards, '--overwrite')
    assert f'{url}: holds another extraction: views is' in command.error(url, *many_shards, '--views', 'plain')
    assert objects(url) == folder
    assert 'finished' in mtpd_cache('info', url).stdout
    assert json.loads(mtpd_cache('info', '--json', url).stdout)[0]['images'] == 24
    assert 'sound' in mtpd_cache('verify', url).stdout
    assert '--repair changes folders only' in mtpd_cache('verify', '--repair', url, code=1).stderr
    assert 'only folders are merged' in mtpd_cache('merge', url, code=2).stderr
    mtpd_cache('picture', url, '--out', tmp_path / 'sheet.png')
    assert (tmp_path / 'sheet.png').is_file()
    mtpd_cache('copy', url, f'{bucket}/copy', '--levels', 'p4')
    assert [level.name for level in mtpd.cache.open(f'{bucket}/copy').levels] == ['p4']
    assert '# Features of' in ObjectStore(f'{bucket}/copy').read('README.md').decode()
    assert 'is the cache itself' in mtpd_cache('copy', url, f'{url}/', code=1).stderr


@pytest.mark.slow
def test_killed_and_interrupted(
    command: Any,
    many_shards: Any,
    folder: dict[str, bytes],
    bucket: str,
    mtpd_cache: Run,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = f'{bucket}/killed'
    script = f"""
import os
from mtpd.cache.writing import lease
from mtpd.cache.writing.writer import CacheWriter
from mtpd.cache.writing.writer import CacheWriter
from mtpd_extract.cli import main
lease.SILENCE_SECONDS = {SILENCE}
commit, told = CacheWriter.commit, []
def counted(self, group):
    told.append(group)
    result = commit(self, group)
    if len(told) == 2:
        os.kill(os.getpid(), NUMBER)
    return result
CacheWriter.commit = counted
main({command.arguments(url, *many_shards)!r})
"""
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        child = [sys.executable, '-c', script.replace('NUMBER', str(int(number)))]
        result = subprocess.run(child, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        with pytest.raises(CacheIncompleteError):
            mtpd.cache.open(url)
    assert 'unfinished, ' in mtpd_cache('info', url).stdout
    command.run(url, *many_shards)
    assert 'was writing here; waiting' in caplog.text
    assert objects(url) == folder


def test_parts_meet_in_the_bucket(
    command: Any, many_shards: Any, folder: dict[str, bytes], bucket: str, synthetic_set: Path, tmp_path: Path
) -> None:
    url = f'{bucket}/parts'
    for part in (2, 3):
        assert 'still missing' in command.run(url, *many_shards, '--part', f'{part}/3').stdout
    command.run(url, *many_shards, '--part', '1/3')
    assert objects(url) == folder
    stage = {
        'student': str(Path(__file__).resolve().parents[3] / 'configs' / 'demo' / 'student.py'),
        'cache': url,
        'init': {'backbone': 'none'},
        'distill': [{'loss': 'masked_mse'}],
        'data': {'coco': str(synthetic_set), 'val': None, 'batch_size': 8, 'workers': 1},
        'optim': {'type': 'adamw', 'lr': 1e-4, 'epochs': 1},
    }
    (tmp_path / 'stage.yaml').write_text(json.dumps(stage))
    mtpd_train.main(
        [str(tmp_path / 'stage.yaml'), '--out', str(tmp_path / 'run'), '--device', 'cpu'], standalone_mode=False
    )
    assert (tmp_path / 'run' / 'student.pth').exists()


def test_an_object_that_is_written_over_before_the_end(
    command: Any, many_shards: Any, folder: dict[str, bytes], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, finish = f'{bucket}/over', CacheWriter.finish

    def written_over(self: CacheWriter) -> Any:
        store = ObjectStore(url)
        changed = next(file for file in store.objects() if '/plain/p3/c/' in file)
        store.put(changed, store.read(changed)[:-1] + b'x')
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, 'finish', written_over)
        assert '1 shards were written over by another process' in command.error(url, *many_shards)
    command.run(url, *many_shards)
    assert objects(url) == folder


def test_places_that_cannot_be_written(command: Any, bucket: str, tmp_path: Path) -> None:
    with WebServer(tmp_path).running() as web:
        assert 'or the URL of a bucket' in command.error(f'{web.url}/cache')
    assert 'expected one of s3' in command.error('ftp://host/cache')
    assert 'NoSuchBucket' in command.error('s3://no-such-bucket/cache')
