"""What a power cut leaves: files are on disk before a journal names them, the manifest is before the plan goes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtpd.cache.format.manifest import MANIFEST_FILE
from mtpd.cache.writing import journal
from mtpd.cache.writing.journal import JournalEntry, journal_path
from mtpd.cache.writing.merge import merge_parts
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.plan_file import PLAN_FILE


@pytest.fixture
def num_checks(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Checks the order of events from now on; counts the checks of journal lines and of deleted plans."""
    fsync, replace, link, unlink, append = os.fsync, Path.replace, os.link, Path.unlink, journal.append_entry
    flushed: set[Path] = set()
    named: set[Path] = set()
    lasting: set[Path] = set()
    counts = {'lines': 0, 'plans': 0}

    def note_fsync(descriptor: int) -> None:
        fsync(descriptor)
        path = Path(f'/proc/self/fd/{descriptor}').resolve()
        if path.is_dir():
            lasting.update(one for one in named if one.parent == path)
        flushed.add(path)

    def note_replace(path: Path, target: Path) -> Path:
        if path in flushed:
            named.add(target)
        return replace(path, target)

    def note_link(source: Path, target: Path) -> None:
        link(source, target)
        if source in flushed or not source.name.startswith('.tmp-'):
            named.add(target)

    def check_plan(path: Path, **options: Any) -> None:
        if path.name == PLAN_FILE and path.exists():
            assert path.parent / MANIFEST_FILE in lasting
            counts['plans'] += 1
        unlink(path, **options)

    def check_line(root: Path, entry: JournalEntry, *, part: Part = WHOLE) -> None:
        assert {root / name for name in entry.files} <= lasting
        flushed.discard(journal_path(root, part))
        append(root, entry, part=part)
        assert {root, journal_path(root, part)} <= flushed
        counts['lines'] += 1

    monkeypatch.setattr(os, 'fsync', note_fsync)
    monkeypatch.setattr(os, 'link', note_link)
    monkeypatch.setattr(Path, 'replace', note_replace)
    monkeypatch.setattr(Path, 'unlink', check_plan)
    monkeypatch.setattr(journal, 'append_entry', check_line)
    return counts


def test_while_writing(make_recipe: Callable[..., Any], num_checks: dict[str, int], tmp_path: Path) -> None:
    recipe = make_recipe('lean')
    recipe.write(tmp_path / 'cache')
    assert num_checks == {'lines': len(recipe.plan().shard_keys()), 'plans': 1}


def test_while_merging(make_recipe: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    recipe, folders = make_recipe(), [tmp_path / 'part1', tmp_path / 'part2']
    for number, folder in enumerate(folders, start=1):
        recipe.write(folder, part=Part(number, 2))
    num_checks = request.getfixturevalue('num_checks')
    merge_parts(folders, tmp_path / 'cache', advance=lambda _: None)
    assert num_checks == {'lines': len(recipe.plan().shard_keys()), 'plans': 1}
