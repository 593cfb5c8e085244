"""The command lines: what users' scripts rely on is frozen, and all commands follow the same conventions.

`tests/cli_surface.txt` holds every command with its arguments, options, types and defaults. Whoever changes it on
purpose runs `python tests/test_cli_surface.py`, which writes it, and says in the CHANGELOG what users must change.
"""

import difflib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from build_reference import programs

from mtpd.command_line import CachePath, LocalPath

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / 'tests' / 'cli_surface.txt'
BIN = Path(sys.executable).parent
NOWHERE = '/nonexistent/file'
# How each command is asked for something that is not there.
FAILURES = {
    'mtpd-cache copy': [NOWHERE, 'copy'],
    'mtpd-cache fidelity': [NOWHERE],
    'mtpd-cache info': [NOWHERE],
    'mtpd-cache merge': [NOWHERE],
    'mtpd-cache order': [NOWHERE, NOWHERE],
    'mtpd-cache picture': [NOWHERE, '--out', 'sheet.png'],
    'mtpd-cache verify': [NOWHERE],
    'mtpd-eval': [NOWHERE],
    'mtpd-export': [NOWHERE, '--out', 'x.onnx'],
    'mtpd-extract': ['--teacher', 'r101', '--coco', NOWHERE, '--out', 'cache'],
    'mtpd-report compare': [NOWHERE],
    'mtpd-report page': [NOWHERE],
    'mtpd-report tensorboard': [NOWHERE],
    'mtpd-train': [f'{NOWHERE}.yaml', '--out', 'run'],
}


def commands() -> Iterator[tuple[str, click.Command]]:
    """All that can be run: programs, or the commands of one that has some."""
    for name, program in programs().items():
        if isinstance(program, click.Group):
            yield from ((f'{name} {one}', command) for one, command in sorted(program.commands.items()))
        else:
            yield name, program


def surface() -> str:
    """The content of `cli_surface.txt`."""
    blocks = []
    for name, command in commands():
        rows = sorted((_names(one), _facts(one)) for one in command.params)
        width = max(len(row[0]) for row in rows)
        blocks.append('\n'.join([name, *(f'  {names:{width}}  {facts}' for names, facts in rows)]))
    return '\n\n'.join(blocks) + '\n'


def _names(one: click.Parameter) -> str:
    if isinstance(one, click.Argument):
        return one.name or ''
    return ', '.join(sorted([*one.opts, *one.secondary_opts]))


def _facts(one: click.Parameter) -> str:
    kind: Any = one.type
    words = [kind.name]
    if isinstance(kind, click.Choice):
        words = ['one of ' + ', '.join(kind.choices)]
    elif isinstance(kind, click.IntRange | click.FloatRange):
        low, high = ('(' if kind.min_open else '[', ')' if kind.max_open else ']')
        words = [f'{kind.name} {low}{kind.min}, {kind.max}{high}']
    if isinstance(one, click.Option) and one.is_flag:
        words = ['flag']
    words += ['required'] * one.required + ['many'] * (one.multiple or one.nargs == -1)
    default = one.to_info_dict().get('default')
    return '; '.join(words + ([] if default is None or default is False else [f'default {default}']))


COMMANDS = dict(commands())


def invoke(name: str, *arguments: str) -> Result:
    """Runs `mtpd-x` or `mtpd-x command` in this process."""
    program, *command = name.split()
    return CliRunner().invoke(programs()[program], [*command, *arguments])


def test_the_command_lines_are_what_they_were() -> None:
    wanted, found = GOLDEN.read_text(), surface()
    changes = difflib.unified_diff(wanted.splitlines(), found.splitlines(), 'cli_surface.txt', 'the programs', n=0)
    assert found == wanted, '\n'.join([*changes, f'if that is meant: python tests/{Path(__file__).name}'])


@pytest.mark.parametrize('name', COMMANDS)
def test_manners_of_every_command(name: str) -> None:
    command = COMMANDS[name]
    options = {option for one in command.params for option in one.opts}
    assert {'-q', '--quiet', '-v', '--verbose'} <= options
    result = invoke(name, '-h')
    assert result.exit_code == 0
    *_, examples = result.output.split('\n\n')
    assert examples.strip().startswith('Examples:')
    assert all(len(line) <= 120 for line in result.output.splitlines())
    for one in command.params:
        # What needs no word explains itself by its name and its choices.
        assert not isinstance(one, click.Option) or one.help or one.name in ('device', 'out'), one.name


@pytest.mark.parametrize('name', COMMANDS)
def test_usage_errors_and_failures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    usage = invoke(name, '--no-such-option')
    assert usage.exit_code == 2
    assert 'No such option' in usage.stderr
    failed = invoke(name, *FAILURES[name])
    assert failed.exit_code == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith('Error: ')
    assert NOWHERE in line
    assert 'this is a bug' not in line
    assert not list(tmp_path.iterdir())


def test_no_path_takes_a_url_for_a_folder() -> None:
    """`s3://bucket/run` would become the local folder `s3:/bucket/run`."""
    paths = [one.type for _, command in commands() for one in command.params if isinstance(one.type, click.Path)]
    assert len(paths) > 20
    assert all(isinstance(one, LocalPath) for one in paths)
    for kind, urls in ((LocalPath(), ('s3://bucket/run', 's3:/bucket')), (CachePath(), ('s3:/bucket',))):
        for url in urls:
            with pytest.raises(click.BadParameter, match='is a URL'):
                kind.convert(url, None, None)
        assert kind.convert('a:b/c', None, None) == Path('a:b/c')
    assert CachePath().convert('s3://bucket/run', None, None) == 's3://bucket/run'


@pytest.mark.parametrize('program', programs())
def test_completion(program: str) -> None:
    """click's own: the help shows the line that turns it on."""
    variable = f'_{program.upper().replace("-", "_")}_COMPLETE'
    request = {variable: 'bash_complete', 'COMP_WORDS': f'{program} --', 'COMP_CWORD': '1'}
    result = subprocess.run([BIN / program], env=os.environ | request, capture_output=True, text=True, check=True)
    assert 'plain,--help' in result.stdout.splitlines()
    assert f'{variable}=bash_source {program}' in invoke(program, '--help').output


@pytest.mark.parametrize(
    ('words', 'offered'),
    [
        ('mtpd-extract --teacher swin_', 'plain,swin_l'),
        ('mtpd-extract --teacher my_', 'file,my_'),
        ('mtpd-cache fidelity cache/r101 --teacher r10', 'plain,r101'),
        ('mtpd-eval --model r10', 'plain,r101'),
        ('mtpd-eval ru', 'file,ru'),
        ('mtpd-report ru', 'dir,ru'),
        ('mtpd-report comp', 'plain,compare'),
        ('mtpd-report runs/mine --min', 'plain,--min-score'),
        ('mtpd-cache ver', 'plain,verify'),
        ('mtpd-train stage1.ya', 'file,stage1.ya'),
    ],
)
def test_what_a_shell_offers(words: str, offered: str) -> None:
    program, *arguments, incomplete = words.split()
    complete = ShellComplete(programs()[program], {}, program, '')
    found = [f'{one.type},{one.value}' for one in complete.get_completions(arguments, incomplete)]
    assert offered in found


if __name__ == '__main__':
    GOLDEN.write_text(surface())
