"""Stage files: reads and checks them, all problems in one error, and prints them as commented YAML and JSON schema."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, Literal, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mtpd.errors import InputError
from mtpd_train.settings.problems import Problem, explain, line_of, table
from mtpd_train.settings.stage_settings import StageSettings

HEADER = '# All settings of a stage. Where a value differs from the default, the default follows as a comment.\n'
# Lines are not wrapped: a default must stay on the line of its value.
_AS_IT_IS: dict[str, Any] = {'sort_keys': False, 'allow_unicode': True, 'width': math.inf}
_DIALECT = 'https://json-schema.org/draft/2020-12/schema'
_WRONG_OVERRIDES: dict[type[Exception], str] = {
    yaml.YAMLError: 'the value is not valid YAML',
    TypeError: 'a list needs the number of an entry, such as distill.0',
    IndexError: 'the list has no entry of that index (the first is 0)',
}


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
    if errors:
        # Lines below a heading are indented, as in every table of problems.
        several = f'{len(errors)} stage files have problems\n' + indent('\n'.join(errors), '  ')
        raise InputError(several if len(errors) > 1 else errors[0])
    return stages


def place_of(paths: Sequence[Path], overrides: Sequence[str], number: int, key: str) -> str:
    """Where a dotted key of stage `number`, from 1, was set, as text: its file and line, or the command line."""
    path = paths[number - 1]
    if any(f'{key}.'.startswith(f'{one}.') or one.startswith(f'{key}.') for one in map(_dotted, overrides)):
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
    """Sets one `key.path=value` in place and returns the key."""
    key, separator, value = override.partition('=')
    if not separator or not key:
        raise InputError(f'--set {override}: expected key.path=value')
    try:
        OmegaConf.update(config, key, OmegaConf.from_dotlist([f'value={value}'])['value'], force_add=True)
    except (yaml.YAMLError, TypeError, IndexError, OmegaConfBaseException, ValueError) as error:
        known = (text for kind, text in _WRONG_OVERRIDES.items() if isinstance(error, kind))
        raise InputError(f'--set {override}: {next(known, _first_line(error))}') from None
    return _dotted(override)


def _dotted(override: str) -> str:
    """The key of an override, with dots alone."""
    return override.partition('=')[0].replace('[', '.').replace(']', '')


def _first_line(error: Exception) -> str:
    return str(error).strip().split('\n', maxsplit=1)[0]


def schema_text() -> str:
    """The schema: types, ranges and names. Only `mtpd-train` itself checks what depends on several settings."""
    schema = StageSettings.model_json_schema()
    return json.dumps({'$schema': _DIALECT, **schema, 'title': 'Stage file of mtpd-train'}, indent=1) + '\n'


def dump_stage(stage: StageSettings) -> str:
    """A stage as YAML that `load_stages` reads back: each setting below its description, other defaults as comments."""
    return HEADER + '\n'.join(_section(stage, margin='')) + '\n'


def _section(section: BaseModel, *, margin: str, defaults: Any = None) -> list[str]:
    """Lines of a section; `defaults` is the default of the section, if there is one."""
    plain = section.model_dump(mode='json')
    lines = []
    for name, field in type(section).model_fields.items():
        lines.append(f'{margin}# {_meaning(field)}')
        value = getattr(section, name)
        default = getattr(defaults, name, field.get_default(call_default_factory=True))
        if isinstance(value, BaseModel):
            lines += [f'{margin}{name}:', *_section(value, margin=f'{margin}  ', defaults=default)]
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            lines.append(f'{margin}{name}:')
            for entry in value:
                # Its first key follows the dash.
                comment, first, *rest = _section(entry, margin=f'{margin}    ')
                lines += [f'{margin}  {comment.lstrip()}', f'{margin}  - {first.lstrip()}', *rest]
        else:
            lines += _leaf(name, plain[name], default, margin=margin)
    return lines


def _meaning(field: FieldInfo) -> str:
    """Description of a setting, followed by the choices that it does not mention."""
    text = field.description or ''
    choices = [str(one) for one in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    if len(choices) < 2 or all(f'`{one}`' in text for one in choices):
        return text
    return f'{text} One of {", ".join(choices)}.'


def _leaf(name: str, value: Any, default: Any, *, margin: str) -> list[str]:
    if isinstance(value, dict) and value:
        block: str = yaml.safe_dump({name: value}, default_flow_style=None, **_AS_IT_IS)
        return [f'{margin}{line}' for line in block.splitlines()]
    line = f'{margin}{name}: {_inline(value)}'
    if default is not PydanticUndefined and _plain(default) != value:
        line += f'  # default: {_inline(_plain(default))}'
    return [line]


def _plain(default: Any) -> Any:
    """A default as a JSON value."""
    if isinstance(default, tuple):
        return [_plain(one) for one in default]
    return default if isinstance(default, bool | int | float | dict | None) else str(default)


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump([value], default_flow_style=True, **_AS_IT_IS)
    return text.strip()[1:-1]
