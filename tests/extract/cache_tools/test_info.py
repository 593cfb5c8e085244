"""`mtpd-cache info` says what is there, finished or not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import mtpd.cache
from mtpd.cache.writing.journal import JOURNAL_FILE
from mtpd.cache.writing.writer import CacheWriter

Run = Callable[..., Result]


def rows(stdout: str, first: str) -> list[list[str]]:
    """The table whose header begins with `first`."""
    lines = [line.split() for line in stdout.splitlines()]
    start = next(number for number, line in enumerate(lines) if line[:1] == [first])
    end = next((number for number in range(start, len(lines)) if not lines[number]), len(lines))
    return lines[start + 1 : end]


@pytest.fixture
def unfinished(command: Any, tmp_path: Path, many_shards: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An extraction that was interrupted when three of its eight shards were committed."""
    commit = CacheWriter.commit
    committed: list[Any] = []

    def stop_after_three(writer: CacheWriter, group: Any) -> int:
        if len(committed) == 3:
            raise KeyboardInterrupt
        committed.append(group)
        return commit(writer, group)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, 'commit', stop_after_three)
        assert command.invoke(tmp_path / 'cache', *many_shards).exit_code == 130
    return tmp_path / 'cache'


def test_a_finished_cache(mtpd_cache: Run, whole: Path) -> None:
    text = mtpd_cache('info', whole).stdout
    assert text.startswith(f'{whole}\n  state     finished, format version 1\n')
    assert '24, all of instances_train2017.json' in text
    assert 'int8' in text
    assert [line[:3] for line in rows(text, 'level')] == [['p3', '8', '12'], ['p4', '16', '16'], ['p5', '32', '8']]
    assert sum(int(line[1]) for line in rows(text, 'padded') if 'x' in line[0]) == 24


def test_json(mtpd_cache: Run, whole: Path) -> None:
    (record,) = json.loads(mtpd_cache('info', '--json', whole).stdout)
    cache = mtpd.cache.open(whole)
    files = [path.stat().st_size for path in whole.rglob('*') if path.is_file()]
    assert record['bytes']['all'] == sum(files)
    # Counted on what is read.
    read = [cache.read(image_id, view) for image_id in cache.image_ids for view in cache.views]
    for level in record['levels']:
        assert level['elements'] == sum(maps[level['name']].numel() for maps in read)
        stored = [path.stat().st_size for path in whole.glob(f'*/*/{level["name"]}*/c/**/*') if path.is_file()]
        assert level['bytes'] == sum(stored)
        assert level['bits_per_element'] == 8 * level['bytes'] / level['elements']
    assert record['finished']
    assert record['images'] == record['committed_images'] == len(cache)
    assert record['provenance']['annotated_images'] == 24


def test_a_part_of_the_data_set(mtpd_cache: Run, command: Any, tmp_path: Path) -> None:
    command.run(tmp_path / 'cache', '--limit', 6, '--views', 'plain', '--codec', 'fp16')
    text = mtpd_cache('info', tmp_path / 'cache').stdout
    assert '6 of 24 (25.0 %) of instances_train2017.json' in text
    assert 'fp16' in text
    assert 'views     plain\n' in text


def test_an_unfinished_cache(mtpd_cache: Run, unfinished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unfinished.rglob('*')}
    text = mtpd_cache('info', unfinished).stdout
    assert 'unfinished, 3 of 8 shards committed; run the same mtpd-extract command again to resume' in text
    (record,) = json.loads(mtpd_cache('info', '--json', unfinished).stdout)
    assert not record['finished']
    assert (record['committed_shards'], record['shards']) == (3, 8)
    assert 0 < record['committed_images'] < record['images'] == 24
    assert record['levels'][0]['elements'] > 0
    assert {path: path.stat().st_mtime_ns for path in unfinished.rglob('*')} == before


def test_a_torn_journal_is_left_to_the_writer(mtpd_cache: Run, unfinished: Path) -> None:
    """It may be a line that is being written."""
    journal = unfinished / JOURNAL_FILE
    torn = journal.read_bytes()[:-20]
    journal.write_bytes(torn)
    assert 'unfinished, 2 of 8' in mtpd_cache('info', unfinished).stdout
    assert journal.read_bytes() == torn


def test_nothing_committed_yet(mtpd_cache: Run, unfinished: Path) -> None:
    (unfinished / JOURNAL_FILE).unlink()
    text = mtpd_cache('info', unfinished).stdout
    assert 'unfinished, 0 of 8' in text
    assert rows(text, 'level')[0][-1] == '-'


def test_several_caches(mtpd_cache: Run, whole: Path, unfinished: Path) -> None:
    text = mtpd_cache('info', whole, unfinished).stdout
    assert text.index(f'{whole}\n') < text.index(f'\n\n{unfinished}\n')
    assert len(json.loads(mtpd_cache('info', '--json', whole, unfinished).stdout)) == 2


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({}, 'no cache here (manifest.json is missing)'),
        ({'manifest.json': '{"format": "zip"}'}, 'not a feature cache'),
        (
            {'manifest.json': '{"format": "mtpd-cache", "version": 7}'},
            'format version 7, this program supports version 1',
        ),
        ({'plan.json': '{'}, 'plan.json: not valid JSON'),
        ({'plan.json': '{"codec": "zip"}'}, 'plan.json: '),
    ],
)
def test_no_cache(mtpd_cache: Run, tmp_path: Path, content: dict[str, str], message: str) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    result = mtpd_cache('info', tmp_path, code=1)
    assert result.stderr.startswith('Error: ')
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
