"""The program itself: its help, its exit codes, what it prints where."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mtpd_extract.cli import main

PROGRAM = Path(sys.executable).with_name('mtpd-extract')


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def processor_seconds(*arguments: str) -> float:
    """What a process takes that runs Python with these arguments and must succeed."""
    null = os.open(os.devnull, os.O_WRONLY)
    file_actions = [(os.POSIX_SPAWN_DUP2, null, 1)]
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=file_actions)
    os.close(null)
    _, status, usage = os.wait4(process, 0)
    assert status == 0
    return usage.ru_utime + usage.ru_stime


def test_help_is_instant() -> None:
    """In processor time, which other work on the machine changes least; the best of three."""
    code = 'from mtpd_extract.cli import main; main(["--help"])'
    assert min(processor_seconds('-c', code) for _ in range(3)) < 0.3


def test_help_imports_nothing_heavy() -> None:
    code = (
        'import sys\nfrom mtpd_extract.cli import main\n'
        'try:\n    main(["--help"])\n'
        'except SystemExit:\n    assert not {"torch", "numpy", "mmdet", "zarr"} & sys.modules.keys()'
    )
    processor_seconds('-c', code)


def test_help_ends_with_examples() -> None:
    result = invoke('--help')
    assert result.exit_code == 0
    _, examples = result.stdout.split('\n  Examples:\n')
    assert all(line.startswith('    ') for line in examples.splitlines())
    assert examples.count('mtpd-extract --teacher') == 6
    assert not result.stderr


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((), "Missing option '--teacher'"),
        (('--teacher', 'r50'), "Missing option '--out'"),
        (('--teacher', 'r50', '--out', 'x', '--codec', 'zip'), "'zip' is not one of 'fp16', 'int8'"),
        (('--teacher', 'r50', '--out', 'x', '--views', 'flop'), "'flop': expected plain, flip or plain,flip"),
        (('--teacher', 'r50', '--out', 'x', '--views', 'flip,flip'), 'expected plain, flip or plain,flip'),
        (('--teacher', 'r50', '--out', 'x', '--levels', ''), "'': expected comma-separated names"),
        (('--teacher', 'r50', '--out', 'x', '--levels', 'p3,'), "'p3,': expected comma-separated names"),
        (('--teacher', 'r50', '--out', 'x', '--scale', '1333'), "'1333': expected two whole numbers"),
        (('--teacher', 'r50', '--out', 'x', '--scale', '0x800'), "'0x800': expected two whole numbers"),
        (('--teacher', 'r50', '--out', 'x', '--scale', '²x8'), "'²x8': expected two whole numbers"),
        (('--teacher', 'r50', '--out', 'x', '--mean', '1,2'), "'1,2': expected three numbers"),
        (('--teacher', 'r50', '--out', 'x', '--batch-size', '0'), '0 is not in the range'),
        (('--teacher', 'r50', '--out', 'x', '--shard-mb', '0'), '0.0 is not in the range'),
        (('--teacher', 'r50', '--out', 'x', '--images', 'y'), '--images and --annotations must be given together'),
        (('--teacher', 'r50', '--out', 'x', '--annotations', 'y'), '--images and --annotations must be given together'),
        (('--teacher', 'r50', '--out', 'x', '--bacth-size', '1'), 'Did you mean'),
        (('--teacher', 'r50', '--out', 'x', '--part', '2'), "'2': expected part/parts, for instance 2/4"),
        (('--teacher', 'r50', '--out', 'x', '--part', '0/4'), "'0/4': parts are numbered from 1"),
        (('--teacher', 'r50', '--out', 'x', '--part', '5/4'), 'the last of 4 parts is 4/4'),
        (('--teacher', 'r50', '--out', 'x', '--part', '-1/4'), "'-1/4': expected part/parts"),
        (
            ('--teacher', 'r50', '--out', 'x', '--part', '1/2', '--overwrite'),
            '--overwrite cannot be combined with parts',
        ),
        (
            ('--teacher', 'r50', '--out', 'x', '--part', '1/2', '--no-resume'),
            '--no-resume cannot be combined with parts',
        ),
    ],
)
def test_usage_errors(arguments: tuple[str, ...], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in ' '.join(result.stderr.split())
    assert not result.stdout


@pytest.mark.parametrize(
    ('environment', 'message'),
    [
        ({'RANK': '2', 'WORLD_SIZE': '2'}, 'RANK=2 and WORLD_SIZE=2 in the environment: expected a rank below'),
        ({'RANK': 'a', 'WORLD_SIZE': '2'}, 'RANK=a and WORLD_SIZE=2'),
        ({'LOCAL_RANK': 'a'}, 'LOCAL_RANK=a in the environment: expected a number'),
    ],
)
def test_a_wrong_environment_is_a_usage_error(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = invoke('--teacher', 'r50', '--out', 'x')
    assert result.exit_code == 2
    assert message in ' '.join(result.stderr.split())


def test_verbose_adds_a_traceback(command: Any, tmp_path: Path) -> None:
    result = command.invoke(tmp_path / 'cache', '--split', 'none')
    assert result.exit_code == 1
    assert 'Traceback' not in result.stderr
    verbose = command.invoke(tmp_path / 'cache', '--split', 'none', '-v')
    assert verbose.exit_code == 1
    assert 'Traceback' in verbose.stderr
    assert verbose.stderr.endswith(result.stderr)


@pytest.mark.parametrize('options', [(), ('-v',)])
def test_an_interrupt_before_the_work(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('mtpd_extract.run.build_extraction', interrupted)
    result = command.invoke(tmp_path / 'cache', *options)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].startswith('Error: interrupted immediately')


def test_the_installed_program_is_this_one() -> None:
    assert PROGRAM.is_file()
    assert 'mtpd_extract.cli' in PROGRAM.read_text()
