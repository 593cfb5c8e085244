"""`--print-config`: YAML that explains every setting and reads as the same stage; and `--print-schema`, for editors."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from mtpd_train.cli import main
from mtpd_train.settings.stage_file import dump_stage, load_stages, schema_text
from mtpd_train.settings.stage_settings import StageSettings

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / 'configs' / 'stage.schema.json'
RECIPES = sorted((ROOT / 'configs').rglob('*.yaml'))
HARD = """\
student: "x: y # no comment"
model: {backbone: {depth: 18, arch: [[64, 128], [3]]}, neck.name: null, text: '5', flag: 'yes'}
cache: ~/a cache
distill:
  - {loss: pkd, levels: [p3], decay: {kind: step, at: [0.5, 0.8]}}
  - {loss: tar_head, temperature: 2}
data: {train: {images: a, annotations: 'b#c.json'}, val: null, photometric: {}, workers: 4}
optim: {lr: 1e-7, epochs: 3, weight_decay: 0}
"""


def texts(section: BaseModel) -> Iterator[str]:
    """The descriptions of all settings that a stage has."""
    for name, field in type(section).model_fields.items():
        assert field.description is not None
        yield field.description
        value = getattr(section, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, BaseModel):
                yield from texts(one)


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.name)
def test_recipes_read_back_as_they_are(path: Path, tmp_path: Path) -> None:
    (stage,) = load_stages([path])
    (tmp_path / 'printed.yaml').write_text(dump_stage(stage))
    assert load_stages([tmp_path / 'printed.yaml']) == [stage]


def test_hard_values_read_back_as_they_are(load: Callable[..., StageSettings]) -> None:
    stage = load(HARD)
    text = dump_stage(stage)
    assert load(text) == stage
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_every_setting_has_its_meaning_above_it(load: Callable[..., StageSettings]) -> None:
    stage = load(HARD)
    comments = [line.strip() for line in dump_stage(stage).splitlines() if line.lstrip().startswith('# ')]
    assert [one.partition(' One of ')[0] for one in comments[1:]] == [f'# {text}' for text in texts(stage)]


def test_choices_are_said(load: Callable[..., StageSettings]) -> None:
    text = dump_stage(load(HARD))
    assert '  # Optimizer. One of sgd, adamw.\n  type: sgd' in text
    assert 'One of full' not in text, 'its meaning says them'
    assert 'One of pkd' not in text, 'it has one value'


def test_defaults_are_said_where_values_differ(load: Callable[..., StageSettings]) -> None:
    lines = [line.strip() for line in dump_stage(load(HARD)).splitlines()]
    assert 'weight_decay: 0.0  # default: 0.0001' in lines
    assert 'val: null  # default: val2017' in lines
    assert 'at: [0.5, 0.8]  # default: []' in lines
    assert 'workers: 4' in lines, 'it is the default'
    assert 'epochs: 3' in lines, 'it has none'
    assert 'kind: linear' in lines, 'the decay of tar_head'


def test_it_needs_no_out(tmp_path: Path) -> None:
    (tmp_path / 'stage.yaml').write_text(HARD)
    result = CliRunner().invoke(main, [str(tmp_path / 'stage.yaml'), '--print-config'])
    assert (result.exit_code, result.stderr) == (0, '')
    (tmp_path / 'printed.yaml').write_text(result.output)
    assert load_stages([tmp_path / 'printed.yaml']) == load_stages([tmp_path / 'stage.yaml'])


def test_the_schema_in_the_repository_is_the_programs() -> None:
    result = CliRunner().invoke(main, ['--print-schema'])
    assert (result.exit_code, result.output) == (0, schema_text())
    assert SCHEMA.read_text() == schema_text(), 'run: mtpd-train --print-schema > configs/stage.schema.json'


@pytest.fixture(scope='module')
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.name)
def test_recipes_fit_the_schema_that_they_name(path: Path, validator: Draft202012Validator) -> None:
    text = path.read_text()
    name = text.splitlines()[0].removeprefix('# yaml-language-server: $schema=')
    assert (path.parent / name).resolve() == SCHEMA
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []


def test_what_is_printed_fits_the_schema(load: Callable[..., StageSettings], validator: Draft202012Validator) -> None:
    printed = yaml.safe_load(dump_stage(load(HARD)))
    assert [error.message for error in validator.iter_errors(printed)] == []


@pytest.mark.parametrize(
    'change',
    [
        {'studnt': 'a'},
        {'optim': {'lr': 0.1}},
        {'optim': {'lr': 0, 'epochs': 1}},
        {'optim': {'lr': 0.1, 'epochs': '3'}},
        {'distill': [{'loss': 'mdg'}]},
        {'distill': [{'loss': 'mgd', 'levels': ['x3']}]},
        {'data': {'flip': 1.5}},
        {'data': {'geometry': {'scale': [3, 4, 5]}}},
        {'hook': 'necks'},
    ],
)
def test_the_schema_refuses_what_is_wrong(change: dict[str, Any], validator: Draft202012Validator) -> None:
    right = {'student': 'a', 'optim': {'lr': 0.1, 'epochs': 1}, 'data': {'geometry': {'scale': '640x480'}}}
    assert validator.is_valid(right)
    assert not validator.is_valid(right | change)


def test_the_schema_describes_every_setting() -> None:
    schema = json.loads(SCHEMA.read_text())
    sections = [schema, *schema['$defs'].values()]
    assert len(sections) > 10
    for section in sections:
        assert section['description']
        for name, one in section['properties'].items():
            assert one.get('description') or '$ref' in one, name
