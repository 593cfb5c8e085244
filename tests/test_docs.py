"""README and docs: the site builds, links resolve, generated pages are up to date, and commands are understood."""

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'scripts'))
from build_reference import outdated, programs

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').rglob('*.md'))]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
INLINE = re.compile(r'`([^`\n]+)`')
PROGRAM = re.compile(r'^(?:torchrun .*--no-python )?(mtpd-[a-z]+)\b(.*)')


def blocks(page: Path, language: str) -> list[str]:
    """The contents of all fenced blocks of a language."""
    return [content for found, content in FENCE.findall(page.read_text()) if found == language]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r'^ {4,}.*$', '', FENCE.sub('', page.read_text()), flags=re.MULTILINE)


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The programs with their arguments in all blocks of a page: fenced as bash, or indented."""
    indented = re.findall(r'^ {4}(.*)$', FENCE.sub('', page.read_text()), re.MULTILINE)
    text = '\n'.join([*blocks(page, 'bash'), *indented]).replace('\\\n', ' ')
    for line in text.splitlines():
        for part in re.split(r' && | > | \| ', line):
            found = PROGRAM.match(part.strip())
            if found:
                yield found[1], shlex.split(found[2], comments=True)


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r'^#+ (.*)$', FENCE.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


def options_of(program: click.Command) -> set[str]:
    commands = program.commands.values() if isinstance(program, click.Group) else [program]
    return {name for one in commands for param in one.params for name in (*param.opts, *param.secondary_opts)}


def definitions(path: Path) -> set[str]:
    """The functions and classes of a module, and its methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f'{node.name}.{one.name}' for one in node.body if isinstance(one, ast.FunctionDef)}
    return found


LINES = {
    f'{page.name}: {shlex.join([name, *words])}': (name, words) for page in PAGES for name, words in command_lines(page)
}


def test_readme__is_short() -> None:
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


def test_code_tour__names_files_and_functions_that_exist() -> None:
    text = (ROOT / 'docs/code-tour.md').read_text()
    assert len(text.splitlines()) <= 90
    path, num_functions = ROOT, 0
    for code in INLINE.findall(text):
        if '/' in code:
            path = ROOT / code
            assert path.exists(), code
        elif code.endswith('()'):
            # A function is named behind its file.
            assert code[:-2] in definitions(path), f'{path}: {code}'
            num_functions += 1
    assert num_functions >= 40


def test_generated_pages__are_up_to_date() -> None:
    assert outdated() == [], 'run: python scripts/build_reference.py'


@pytest.mark.skipif(importlib.util.find_spec('mkdocs') is None, reason='needs mkdocs: pip install -e ".[docs]"')
def test_site__builds_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')]
    quiet = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
    result = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert 'WARNING' not in result.stderr
    api = (tmp_path / 'site' / 'reference' / 'api.html').read_text()
    assert "The teacher's maps of one image, as float32 (C, H, W) by level name." in api.replace('&#39;', "'")
    assert 'From codes to maps' in (tmp_path / 'site' / 'reference' / 'cache-format.html').read_text()


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links__resolve(page: Path) -> None:
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'\w+:', target):
            continue
        path, _, anchor = target.partition('#')
        wanted = (page.parent / path).resolve() if path else page
        assert wanted.is_relative_to(ROOT), target
        assert wanted.exists(), target
        assert not anchor or anchor in slugs(wanted), target


def test_commands__all_programs_are_shown() -> None:
    assert {name for name, _ in LINES.values()} == set(programs())


@pytest.mark.parametrize('line', LINES)
def test_commands__are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, words = LINES[line]
    program = programs()[name]
    for one in [program, *(program.commands.values() if isinstance(program, click.Group) else [])]:
        monkeypatch.setattr(one, 'callback', lambda **_: None)
    result = CliRunner().invoke(program, words)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text__exist(page: Path) -> None:
    by_program = {name: options_of(program) for name, program in programs().items()}
    scripts = '\n'.join(path.read_text() for path in (ROOT / 'scripts').rglob('*.py'))
    known = {'--all', '--help', '--no-python', '--nproc-per-node'}.union(
        *by_program.values(), re.findall(r"'(--[a-z-]+)'", scripts)
    )
    for code in INLINE.findall(prose(page)):
        if not code.startswith(('--', 'mtpd-', 'torchrun', 'scripts/')):
            continue
        found = PROGRAM.match(code)
        options = re.findall(r'(?<!\S)--[a-z][a-z0-9-]*', code)
        assert set(options) <= ((by_program[found[1]] | {'--help'}) if found else known), code


@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page, 'python')], ids=lambda page: page.name)
def test_python_examples__import_what_there_is(page: Path) -> None:
    for block in blocks(page, 'python'):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mtpd'):
                module = importlib.import_module(node.module or '')
                assert all(hasattr(module, name.name) for name in node.names)


@pytest.mark.parametrize('codec', ['fp16', 'int8', 'lean'])
def test_python_examples__losses_of_a_cache(codec: str) -> None:
    (example,) = (block for block in blocks(ROOT / 'docs/reference/api.md', 'python') if 'Distiller(' in block)
    names: dict[str, object] = {}
    exec(example.replace('cache/r101', str(ROOT / 'tests/cache/golden/v1' / codec)), names)
    losses, maps = names['losses'], names['maps']
    assert isinstance(losses, dict)
    assert isinstance(maps, dict)
    assert list(losses) == ['distill/masked_mse/p3', 'distill/masked_mse/p4']
    assert all(one.grad.isfinite().all() and one.grad.any() for one in maps.values())
