"""The reference of stage files as Markdown, from the JSON schema of their settings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mtpd_train.settings.printing import schema_text
from reference.markdown import GENERATED, cell, table

Schema = Mapping[str, Any]
INTRODUCTION = f"""\
{GENERATED}
# Stage file reference

A stage file is YAML. Every section below is a mapping of the file; a key that is not listed is an error. Paths are
relative to the current directory. `mtpd-train STAGE.yaml --print-config` prints a stage with all its settings, and
`configs/stage.schema.json` is the schema for editors. [Stage files](../stage-files.md) explains how they work together.
"""
HEADS = ('key', 'type', 'default', 'meaning')
DECAY = 'Decay'  # the one section that entries of a list have in common
BOUNDS = {'exclusiveMinimum': 'above', 'minimum': 'at least', 'exclusiveMaximum': 'below', 'maximum': 'at most'}


def stage_file_page() -> str:
    """The content of docs/reference/stage-file.md."""
    schema = json.loads(schema_text())
    return '\n'.join([INTRODUCTION, *_Page(schema['$defs']).blocks(schema)])


class _Page:
    """The sections of a schema, each with a heading that its key links to."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def blocks(self, schema: Schema) -> Iterator[str]:
        """The whole stage, its sections, and one section for each distillation loss."""
        yield f'## Top level\n\n{self._table(schema, path="")}\n'
        yield from self._sections(schema, path='')

    def _sections(self, schema: Schema, *, path: str) -> Iterator[str]:
        for key, field in schema['properties'].items():
            here = f'{path}.{key}'.lstrip('.')
            losses = field.get('items', {}).get('discriminator', {}).get('mapping')
            if losses:
                yield f'## {here}\n\n{field["description"]} A list; the settings of an entry depend on its `loss`.\n'
                for name, reference in losses.items():
                    yield self._section(self._resolve(reference), title=f'{here}: {name}')
                yield self._section(self._definitions[DECAY], title=f'{here}: decay')
                continue
            for reference in _references(field):
                yield self._section(self._resolve(reference), title=here)
                yield from self._sections(self._resolve(reference), path=here)

    def _section(self, section: Schema, *, title: str) -> str:
        level = '###' if ':' in title else '##'
        return f'{level} {title}\n\n{section.get("description", "")}\n\n{self._table(section, path=title)}\n'

    def _table(self, schema: Schema, *, path: str) -> str:
        required = schema.get('required', ())
        rows = []
        for key, field in schema['properties'].items():
            default = '*required*' if key in required else _default(field)
            kind = self._kind(field, path=f'{path}.{key}'.lstrip('.'))
            meanings = [field, *(self._resolve(one) for one in _references(field))]
            meaning = next(one['description'] for one in meanings if 'description' in one)
            rows.append((f'`{key}`', kind, default, cell(meaning)))
        return table(HEADS, rows)

    def _kind(self, field: Schema, *, path: str) -> str:
        """What a value may be, in words."""
        if '$ref' in field:
            path = 'distill: decay' if field['$ref'].endswith(DECAY) else path
            return f'[section](#{_slug(path)})'
        if 'const' in field:
            return f'`{field["const"]}`'
        if 'enum' in field:
            return ', '.join(f'`{one}`' for one in field['enum'])
        for union in ('anyOf', 'oneOf'):
            if union in field:
                return ' or '.join(dict.fromkeys(self._kind(one, path=path) for one in field[union]))
        if field.get('type') == 'array':
            return self._list(field, path=path)
        words = {
            'integer': 'integer',
            'number': 'number',
            'boolean': 'true or false',
            'null': 'null',
            'object': 'mapping',
        }
        kind = words.get(field.get('type', ''), 'path' if field.get('format') == 'path' else 'text')
        bounds = [f'{word} {field[name]:g}' for name, word in BOUNDS.items() if name in field]
        return ', '.join([kind, *bounds])

    def _list(self, field: Schema, *, path: str) -> str:
        if 'prefixItems' in field:
            return f'pair of: {self._kind(field["prefixItems"][0], path=path)}'
        if 'discriminator' in field['items']:
            return f'list of [losses](#{_slug(path)})'
        return f'list of: {self._kind(field["items"], path=path)}'

    def _resolve(self, reference: str) -> Schema:
        return self._definitions[reference.removeprefix('#/$defs/')]


def _references(field: Schema) -> Iterator[str]:
    """The sections that a key may hold."""
    if '$ref' in field:
        yield field['$ref']
    for one in (*field.get('anyOf', ()), *field.get('oneOf', ())):
        yield from _references(one)


def _slug(path: str) -> str:
    """The anchor of a heading."""
    return ''.join(one for one in path.lower().replace(' ', '-') if one.isalnum() or one in '-_')


def _default(field: Schema) -> str:
    default = field.get('default', {})
    if isinstance(default, dict):
        # Of a section, what differs from the section's own defaults: a decay other than none.
        return f'`{{kind: {default["kind"]}}}`' if 'kind' in default else ('' if default else '`{}`')
    return f'`{json.dumps(default)}`'
