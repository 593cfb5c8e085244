"""Reads stage files: YAML, overrides from the command line, checks. One error lists all problems of all files."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from mtpd.errors import InputError
from mtpd_train.settings.problems import Problem, explain, line_of, table
from mtpd_train.settings.stage_settings import StageSettings


def load_stages(paths: Sequence[Path], *, overrides: Sequence[str] = ()) -> list[StageSettings]:
    """Reads and checks the stages of a run; one InputError lists every problem of every file.

    `overrides` are `key.path=value` with a YAML value, each set in every stage; `distill.0.weight=1` reaches into a
    list.
    """
    stages: list[StageSettings] = []
    errors: list[str] = []
    for index, path in enumerate(paths):
        try:
            stages.append(_load_stage(path, overrides, is_first=index == 0))
        except InputError as error:
            errors.append(str(error))
    errors = list(dict.fromkeys(errors))  # A wrong override gives the same error for every file.
    if len(errors) > 1:
        # Lines below a heading are indented, as in every table of problems.
        raise InputError(f'{len(errors)} stage files have problems\n' + indent('\n'.join(errors), '  '))
    if errors:
        raise InputError(errors[0])
    return stages


def place_of(paths: Sequence[Path], overrides: Sequence[str], number: int, key: str) -> str:
    """Where a dotted key of stage `number`, from 1, was set, as text: its file and line, or the command line."""
    path = paths[number - 1]
    changed = [override.partition('=')[0].replace('[', '.').replace(']', '') for override in overrides]
    if any(f'{key}.'.startswith(f'{one}.') or one.startswith(f'{key}.') for one in changed):
        return f'{path} with --set'
    return f'{path} line {line_of(_read_yaml(path)[0], tuple(key.split(".")))}'


def _load_stage(path: Path, overrides: Sequence[str], *, is_first: bool) -> StageSettings:
    root, config = _read_yaml(path)
    _unfold_model(config)
    changed = [_override(config, override) for override in overrides]
    try:
        content = OmegaConf.to_container(config, resolve=True)
        # By way of JSON, whose lists and strings strict tuples and paths accept.
        stage = StageSettings.model_validate_json(json.dumps(content, default=str))
    except OmegaConfBaseException as error:
        raise InputError(f'{path}: {_first_line(error)}') from None
    except ValidationError as error:
        raise InputError(table(f'{path} has', explain(error, content, root=root, overridden=changed))) from None
    if stage.init.inherit and not is_first and stage.init.checkpoint is None and stage.init.fine_tune is None:
        text = (
            "would overwrite the weights of the previous stage with the teacher's; "
            'remove it, or set init.checkpoint to start from other weights'
        )
        place = f'line {line_of(root, ("init", "inherit"))}'
        raise InputError(table(f'{path} has', [Problem(place, 'init.inherit', text)]))
    return stage


def _read_yaml(path: Path) -> tuple[yaml.Node, DictConfig]:
    """The file as nodes, which have line numbers, and as values."""
    try:
        text = path.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise InputError(f'there is no stage file {path}; check the path') from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f'cannot read the stage file {path}: {error}') from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise InputError(f'the stage file {path} is empty; it needs at least `student` and `optim`')
        if not isinstance(node, yaml.MappingNode):
            found = 'list' if isinstance(node, yaml.SequenceNode) else 'single value'
            raise InputError(f'the stage file {path} must hold `key: value` lines, found a {found}')
        config = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f' line {mark.line + 1}' if mark else ''
        problem = error.problem or error.context
        if isinstance(error, yaml.composer.ComposerError) and 'another document' in str(problem):
            problem = 'a second YAML document starts here; use one file per stage'
        raise InputError(f'{path}{where}: {problem}; fix the YAML') from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f'{path}: {_first_line(error)}; fix the YAML') from None
    assert isinstance(config, DictConfig)
    return node, config


def _unfold_model(config: DictConfig) -> None:
    """Turns `model: {backbone.depth: 18}` into nested mappings, so that overrides can reach into it."""
    model = config.get('model')
    if isinstance(model, DictConfig):
        config['model'] = {}
        for key, value in model.items():
            OmegaConf.update(config['model'], str(key), value, force_add=True)


def _override(config: DictConfig, override: str) -> str:
    """Sets one `key.path=value` in place and returns the key, with dots alone."""
    key, separator, value = override.partition('=')
    if not separator or not key:
        raise InputError(f'--set {override}: expected key.path=value')
    try:
        OmegaConf.update(config, key, OmegaConf.from_dotlist([f'value={value}'])['value'], force_add=True)
    except yaml.YAMLError:
        raise InputError(f'--set {override}: the value is not valid YAML') from None
    except TypeError:
        raise InputError(f'--set {override}: a list needs the number of an entry, such as distill.0') from None
    except IndexError:
        raise InputError(f'--set {override}: the list has no entry of that index (the first is 0)') from None
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f'--set {override}: {_first_line(error)}') from None
    return key.replace('[', '.').replace(']', '')


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n', maxsplit=1)[0]
