"""Prints stages as commented YAML, and the JSON schema of stage files for editors."""

import json
import math
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mtpd_train.settings.stage_settings import StageSettings

HEADER = '# All settings of a stage. Where a value differs from the default, the default follows as a comment.\n'
# Lines are not wrapped: a default must stay on the line of its value.
_AS_IT_IS: dict[str, Any] = {'sort_keys': False, 'allow_unicode': True, 'width': math.inf}
_DIALECT = 'https://json-schema.org/draft/2020-12/schema'


def schema_text() -> str:
    """The schema: types, ranges and names. Only `mtpd-train` itself checks what depends on several settings."""
    schema = StageSettings.model_json_schema()
    return json.dumps({'$schema': _DIALECT, **schema, 'title': 'Stage file of mtpd-train'}, indent=1) + '\n'


def dump_stage(stage: StageSettings) -> str:
    """A stage as YAML that `load_stages` reads back: each setting below its description, other defaults as comments."""
    return HEADER + '\n'.join(_section(stage, indent='')) + '\n'


def _section(section: BaseModel, *, indent: str, defaults: Any = None) -> list[str]:
    """Lines of a section; `defaults` is the default of the section, if there is one."""
    plain = section.model_dump(mode='json')
    lines = []
    for name, field in type(section).model_fields.items():
        lines.append(f'{indent}# {_meaning(field)}')
        value = getattr(section, name)
        default = getattr(defaults, name, field.get_default(call_default_factory=True))
        if isinstance(value, BaseModel):
            lines += [f'{indent}{name}:', *_section(value, indent=f'{indent}  ', defaults=default)]
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            lines.append(f'{indent}{name}:')
            for entry in value:
                lines += _entry(entry, indent=f'{indent}  ')
        else:
            lines += _leaf(name, plain[name], default, indent=indent)
    return lines


def _meaning(field: FieldInfo) -> str:
    """Description of a setting, followed by the choices that it does not mention."""
    text = field.description or ''
    choices = [str(one) for one in get_args(field.annotation)] if get_origin(field.annotation) is Literal else []
    if len(choices) < 2 or all(f'`{one}`' in text for one in choices):
        return text
    return f'{text} One of {", ".join(choices)}.'


def _entry(entry: BaseModel, *, indent: str) -> list[str]:
    """A section as an entry of a list: its first key follows the dash."""
    comment, first, *rest = _section(entry, indent=f'{indent}  ')
    return [f'{indent}{comment.lstrip()}', f'{indent}- {first.lstrip()}', *rest]


def _leaf(name: str, value: Any, default: Any, *, indent: str) -> list[str]:
    if isinstance(value, dict) and value:
        block: str = yaml.safe_dump({name: value}, default_flow_style=None, **_AS_IT_IS)
        return [f'{indent}{line}' for line in block.splitlines()]
    line = f'{indent}{name}: {_inline(value)}'
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
