"""Locks belong to one process, which they name, and end with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtpd.system.locks import LockHeldError, held

HOLD = 'import sys; from pathlib import Path; from mtpd.system.locks import held\n'
HOLD += 'with held(Path(sys.argv[1]), role=" as part 2"):\n    print("held", flush=True)\n    sys.stdin.read()'


def test_the_holder_is_named_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / '.lock'
    with subprocess.Popen([sys.executable, '-c', HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b'held\n'
        with pytest.raises(LockHeldError, match=rf'^process {holder.pid} on .* as part 2$'), held(path):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    with held(path):
        assert (tmp_path / '.lock.holder').read_text().startswith(f'process {os.getpid()} on ')
    assert [one.name for one in tmp_path.iterdir()] == ['.lock']
    with held(path):
        pass
