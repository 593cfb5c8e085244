"""What programs print while they work and when they end."""

import subprocess
import sys

import pytest
import torch

from mtpd.errors import CacheDamagedError, InputError, Interrupted
from mtpd.system.console import FAILED, INTERRUPTED, exit_code, message, progress_bar, reported, say, warn


def bar() -> None:
    with progress_bar(total=30, desc='work', unit='image') as progress:
        for _ in range(3):
            progress.update(10)


def test_a_log_file_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    bar()
    lines = capsys.readouterr().err.splitlines()
    assert 1 < len(lines) < 4, 'the first and the last look, and none in between within the interval'
    assert all(line.startswith('work: ') for line in lines)
    assert '30/30' in lines[-1]


def test_a_bar_that_leaves_nothing_on_a_terminal_does_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(range(3), desc='work', leave=False) as progress:
        assert list(progress) == [0, 1, 2]
    first, *_, last = capsys.readouterr().err.splitlines()
    assert (first.split()[1], last.split()[1]) == ('0%|', '100%|##########|')


def test_a_terminal_gets_a_moving_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True, raising=False)
    bar()
    assert '\r' in capsys.readouterr().err


def test_bars_for_terminals_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress_bar(range(2), in_logs=False)) == [0, 1]
    assert capsys.readouterr().err == ''


def test_quiet_leaves_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with reported(verbose=False, quiet=True):
            bar()
            say('half done')
            warn('odd')
            raise InputError('wrong')

    with pytest.raises(SystemExit) as caught:
        work()
    assert caught.value.code == 1
    assert capsys.readouterr() == ('', 'warning: odd\nError: wrong\n')
    say('it ends with the program')
    assert capsys.readouterr().out == 'it ends with the program\n'


@pytest.mark.parametrize(
    ('error', 'code', 'text'),
    [
        (InputError('a is wrong'), 1, 'Error: a is wrong\n'),
        (Interrupted('stopped; run it again'), 130, 'stopped; run it again\n'),
        (KeyboardInterrupt(), 130, 'Error: interrupted immediately; earlier saves are kept\n'),
        (ValueError('x'), 1, 'Error: ValueError: x (this is a bug or a broken environment; -v shows where)\n'),
    ],
)
def test_how_programs_end(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        with pytest.raises(SystemExit) as caught, reported(verbose=verbose):
            raise error
        assert caught.value.code == code
        stderr = capsys.readouterr().err
        assert stderr.endswith(text)
        assert ('Traceback' in stderr) == verbose


@pytest.mark.parametrize(('work', 'code'), [('say("b"); warn("c")', 0), ('print("b")', 1)])
def test_a_reader_who_goes_away_stops_no_work(work: str, code: int) -> None:
    program = f"""
import sys
from mtpd.system.console import reported, say, warn
say("a")
sys.stdin.readline()
with reported(verbose=False):
    {work}
"""
    command = [sys.executable, '-c', program]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b'a\n'
        process.stdout.close()
        process.stdin.write(b'\n')
        process.stdin.close()
        errors = process.stderr.read()
        assert process.wait() == code
    assert errors == (b'' if code else b'warning: c\n')


def test_a_program_without_a_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where its output was taken away, by `redirect_stdout(None)` or a system without consoles."""
    monkeypatch.setattr(sys, 'stdout', None)
    monkeypatch.setattr(sys, 'stderr', None)
    with reported(verbose=False):
        bar()
        say('half done')
        warn('odd')


@pytest.mark.parametrize(
    ('error', 'code', 'line'),
    [
        (InputError('a.json:  no\nimages'), FAILED, 'a.json: no images'),
        (CacheDamagedError('x'), FAILED, 'x'),
        (Interrupted('run it again'), INTERRUPTED, 'run it again'),
        (KeyboardInterrupt(), INTERRUPTED, 'interrupted immediately; earlier saves are kept'),
        (PermissionError(13, 'Permission denied', '/data'), FAILED, '/data: Permission denied'),
        (ZeroDivisionError('by\nzero'), FAILED, 'ZeroDivisionError: by zero (this is a bug or a broken environment; '),
        (torch.OutOfMemoryError('CUDA out of memory'), FAILED, 'the device has too little memory: use a smaller'),
        (OSError('odd'), FAILED, 'OSError: odd (this is a bug'),
        (SystemExit(3), FAILED, 'SystemExit: 3 (this is a bug'),
    ],
)
def test_exit_code_and_message(error: BaseException, code: int, line: str) -> None:
    assert exit_code(error) == code
    assert message(error).startswith(line)
    assert '\n' not in message(error)


def test_a_message_that_is_a_table_keeps_its_lines() -> None:
    table = 'stage.yaml has 2 problems\n  line 1  a  is missing\n  line 2  b  is missing'
    assert message(InputError(table)) == table
