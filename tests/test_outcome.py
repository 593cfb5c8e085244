"""What a program says and returns when its work ends in an exception."""

import pytest
import torch

from mtpd.errors import CacheDamagedError, InputError
from mtpd.outcome import FAILED, INTERRUPTED, Interrupted, exit_code, message


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
def test_code_and_line(error: BaseException, code: int, line: str) -> None:
    assert exit_code(error) == code
    assert message(error).startswith(line)
    assert '\n' not in message(error)


def test_a_table_keeps_its_lines() -> None:
    table = 'stage.yaml has 2 problems\n  line 1  a  is missing\n  line 2  b  is missing'
    assert message(InputError(table)) == table
