"""Whose folder a run's is."""

import json
from pathlib import Path
from typing import Any

import pytest

from mtpd.errors import InputError
from mtpd_train.run_folder import RUN_FILE, claim_folder
from mtpd_train.settings.stage_settings import StageSettings

STAGE = {
    'student': 'retinanet_r18_fpn_1x_coco',
    'cache': 'cache/r101',
    'distill': [{'loss': 'mgd'}],
    'data': {'batch_size': 8},
    'optim': {'lr': 0.01, 'epochs': 12},
}


def described(**changes: Any) -> dict[str, Any]:
    """What this version writes of a run of one stage."""
    stage = StageSettings.model_validate_json(json.dumps(STAGE | changes))
    return {'stages': {'1': stage.model_dump(mode='json')}, 'contents': {}, 'caches': {}, 'teachers': {}}


@pytest.fixture
def of_older_version(tmp_path: Path) -> Path:
    """The folder of a run whose version had no `optim.ema`, no section `evaluate`, no `mask_ratio` of mgd."""
    found = described()
    stage = found['stages']['1']
    del stage['optim']['ema'], stage['evaluate'], stage['distill'][0]['mask_ratio']
    (tmp_path / RUN_FILE).write_text(json.dumps(found))
    return tmp_path


def test_a_run_of_an_older_version_had_the_defaults(of_older_version: Path) -> None:
    claim_folder(of_older_version, described(), resume=True)


@pytest.mark.parametrize(
    ('changes', 'wanted'),
    [
        ({'optim': {'lr': 0.01, 'epochs': 12, 'ema': 0.999}}, r'stages\.1\.optim\.ema was None and is 0\.999'),
        ({'evaluate': {'every': 3}}, r'stages\.1\.evaluate\.every was 1 and is 3'),
        ({'seed': 1}, r'stages\.1\.seed was 0 and is 1'),
    ],
)
def test_a_setting_that_an_older_version_did_not_have_is_refused_when_it_is_no_default(
    changes: dict[str, Any], wanted: str, of_older_version: Path
) -> None:
    with pytest.raises(InputError, match=wanted):
        claim_folder(of_older_version, described(**changes), resume=True)


def test_long_values_are_cut(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps(described()))
    with pytest.raises(InputError, match=r'stages\.1\.student was .* and is x+\.\.\.; restore') as error:
        claim_folder(tmp_path, described(student='x' * 1000), resume=True)
    assert len(str(error.value)) < 500


SOURCE = {'fingerprint': {'teacher': {'weights': 'w'}}, 'provenance': {'device': 'a'}}
CONTENTS = {'student': 's', 'data.train': 't', 'data.val': 'v', 'init.checkpoint': 'c', 'init.backbone': 'b'}
PLACES: dict[str, dict[str, Any]] = {
    'student': {'student': 'moved/student.py'},
    'cache': {'cache': 'moved/cache'},
    'data.coco': {'data': {'batch_size': 8, 'coco': 'moved/coco'}},
    'data.train.images': {'data': {'batch_size': 8, 'train': {'images': 'moved/images', 'annotations': 'a.json'}}},
    'init.checkpoint': {'init': {'checkpoint': 'moved/student.pth', 'backbone': 'net.pth'}},
    'init.backbone': {'init': {'checkpoint': 'student.pth', 'backbone': 'moved/net.pth'}},
}
BEFORE: dict[str, Any] = {
    'init': {'checkpoint': 'student.pth', 'backbone': 'net.pth'},
    'data': {'batch_size': 8, 'train': {'images': 'images', 'annotations': 'a.json'}},
}


def recorded(*, source: dict[str, Any] = SOURCE, contents: dict[str, str] = CONTENTS, **changes: Any) -> dict[str, Any]:
    """A whole run.json of one stage with a cache."""
    description = described(**(BEFORE | changes))
    cache = description['stages']['1']['cache']
    return description | {'contents': {'1': contents}, 'caches': {cache: source}, 'device': 'a'}


@pytest.mark.parametrize('key', PLACES)
def test_the_same_content_under_another_path(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes on, says so once, and readers of the run find the new path."""
    claim_folder(tmp_path, recorded(), resume=False)
    moved = recorded(source=SOURCE | {'provenance': {'device': 'b'}}, **PLACES[key])
    claim_folder(tmp_path, moved | {'device': 'b'}, resume=True)
    said = capsys.readouterr().err
    assert f'stages.1.{key} was ' in said
    assert 'moved' in said
    found = json.loads((tmp_path / RUN_FILE).read_text())
    assert found == moved | {'device': 'a'}
    claim_folder(tmp_path, moved, resume=True)
    assert not capsys.readouterr().err


@pytest.mark.parametrize('is_moved', [False, True])
@pytest.mark.parametrize('key', ['student', 'data.train', 'data.val', 'init.checkpoint', 'init.backbone'])
def test_another_content_is_refused_wherever_it_is(key: str, is_moved: bool, tmp_path: Path) -> None:
    claim_folder(tmp_path, recorded(), resume=False)
    place = {'data.train': 'data.train.images', 'data.val': 'data.coco'}.get(key, key)
    now = recorded(contents=CONTENTS | {key: 'other'}, **(PLACES[place] if is_moved else {}))
    with pytest.raises(InputError, match=rf'stages\.1\.{place if is_moved else key}\b.* was .* and is ') as error:
        claim_folder(tmp_path, now, resume=True)
    assert ('moved' if is_moved else 'sha256 other') in str(error.value)


@pytest.mark.parametrize('changes', [{}, PLACES['cache']])
def test_another_cache_is_refused_wherever_it_is(changes: dict[str, Any], tmp_path: Path) -> None:
    claim_folder(tmp_path, recorded(), resume=False)
    now = recorded(source={'fingerprint': {'teacher': {'weights': 'other'}}}, **changes)
    with pytest.raises(InputError, match=r'caches\..*\.fingerprint\.teacher\.weights was w and is other'):
        claim_folder(tmp_path, now, resume=True)


def test_another_number_of_stages(tmp_path: Path) -> None:
    found = described()
    (tmp_path / RUN_FILE).write_text(json.dumps(found))
    with pytest.raises(InputError, match='the number of stages was 1 and is 2; give the same stage files'):
        claim_folder(tmp_path, found | {'stages': {**found['stages'], '2': found['stages']['1']}}, resume=True)


@pytest.mark.parametrize('content', ['', '{"stages": ', '[]', '{"stages": [1]}'])
def test_a_file_that_describes_no_run(content: str, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(InputError, match=r'run\.json .*does not describe a run.*choose another --out'):
        claim_folder(tmp_path, described(), resume=True)


def test_a_setting_that_is_no_more_is_named(tmp_path: Path) -> None:
    found = described()
    found['stages']['1']['optim']['nesterov'] = True
    (tmp_path / RUN_FILE).write_text(json.dumps(found))
    with pytest.raises(InputError, match=r'stages\.1\.optim\.nesterov was True and is None'):
        claim_folder(tmp_path, described(), resume=True)
