"""The command reference as Markdown, from the click commands of the programs that pyproject.toml names."""

import importlib
import inspect
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import click

from reference.markdown import GENERATED, cell, table

ROOT = Path(__file__).resolve().parents[2]
INTRODUCTION = f"""\
{GENERATED}
# Command reference

Every command has `-h`/`--help`. Exit codes of all programs: 0 done, 1 failed (one line on stderr; `-v` adds a
traceback), 2 usage, 130 interrupted after saving.
"""


def programs() -> dict[str, click.Command]:
    """The programs that the project installs, by name."""
    scripts = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['scripts']
    found = {}
    for name, target in sorted(scripts.items()):
        module, _, attribute = target.partition(':')
        found[name] = getattr(importlib.import_module(module), attribute)
    return found


def commands_page() -> str:
    """The content of docs/reference/commands.md."""
    blocks = [INTRODUCTION]
    for name, program in programs().items():
        context = click.Context(program, info_name=name, **program.context_settings)
        blocks.append(_command(context, heading='##'))
        if isinstance(program, click.Group):
            for word, command in sorted(program.commands.items()):
                blocks.append(_command(click.Context(command, parent=context, info_name=word), heading='###'))
    return '\n'.join(blocks)


def _command(context: click.Context, *, heading: str) -> str:
    # A command keeps the help option that its first context makes, so this one has the settings that users have.
    command, name = context.command, context.command_path
    usage = ' '.join([name, *command.collect_usage_pieces(context)])
    parts = [f'{heading} {name}', f'```text\n{usage}\n```', inspect.cleandoc(command.help or '')]
    rows = [_row(one) for one in command.params if isinstance(one, click.Option)]
    if rows:
        parts.append(table(('option', 'default', 'meaning'), rows))
    parts.append(f'```bash\n{_examples(command)}\n```')
    return '\n\n'.join(parts) + '\n'


def _examples(command: click.Command) -> str:
    """The examples at the end of the help, without the heading."""
    text = (command.epilog or '').split('Examples:\n')[1]
    return textwrap.dedent(text).strip()


def _row(option: click.Option) -> tuple[str, str, str]:
    names = ', '.join(f'`{name}`' for name in sorted(option.opts, key=len))
    if option.secondary_opts:
        names += ' / ' + ', '.join(f'`{name}`' for name in option.secondary_opts)
    kind: Any = option.type
    text, _, said = (option.help or '').partition('  [default: ')
    if isinstance(kind, click.Choice):
        text += ' One of ' + ', '.join(f'`{one}`' for one in kind.choices) + '.'
    value = _value(option)
    return names + (f' `{value}`' if value else ''), cell(said.rstrip(']') or _default(option)), cell(text)


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ''
    if option.metavar:
        return option.metavar
    kind: Any = option.type
    words = {'integer': 'N', 'integer range': 'N', 'float': 'X', 'float range': 'X', 'directory': 'DIR', 'file': 'FILE'}
    return words.get(kind.name, 'PATH' if kind.name == 'path' else 'VALUE')


def _default(option: click.Option) -> str:
    if option.required:
        return 'required'
    default = option.to_info_dict().get('default')
    if option.is_flag and option.secondary_opts and isinstance(default, bool):
        return f'`{(option.opts if default else option.secondary_opts)[0]}`'
    return '' if default is None or default is False or default == () else f'`{default}`'
