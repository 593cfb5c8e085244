"""Runs in processes of their own, which can be killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd.data.synthetic import SyntheticSpec, make_synthetic_set

EPOCHS = 3

# Imports everything once, then forks a process for every run: `mtpd-train` as its command starts it, within moments.
SERVER = """
import json, os, resource, sys
os.environ['TORCH_CPP_LOG_LEVEL'] = 'ERROR'  # as the command sets it before it imports torch
import torch
torch.set_num_threads(1)
from mtpd.detectors.of_mmdet.runtime import prepare
prepare()
import mmdet.models, mtpd_train.run
from mtpd_train.cli import main
for line in sys.stdin:
    request = json.loads(line)
    if 'wait' in request:
        _, status = os.waitpid(request['wait'], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if not pid:
        os.setsid()
        for number, name in enumerate(('/dev/null', request['stdout'], request['stderr'])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(request['environment'])
        if request['file_size_limit']:
            resource.setrlimit(resource.RLIMIT_FSIZE, (request['file_size_limit'], resource.RLIM_INFINITY))
        exec(request['code'])
        main(request['arguments'])
    print(pid, flush=True)
"""


@dataclass
class Program:
    """A process that runs `mtpd-train`."""

    pid: int
    folder: Path
    ask: Callable[[dict[str, Any]], int]

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, or the negative number of the signal that ended it."""
        return self.ask({'wait': self.pid})

    @property
    def last_line(self) -> str:
        """What it said last on stderr."""
        return self.stderr.splitlines()[-1]

    @property
    def stderr(self) -> str:
        return (self.folder / 'stderr').read_text()


StartProgram = Callable[..., Program]


@pytest.fixture(scope='session')
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProgram]:
    """`start(stage_file, ..., '--out', run)` starts mtpd-train, after some other `code` where there is any."""
    server = subprocess.Popen(
        [sys.executable, '-c', SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert server.stdin is not None
    assert server.stdout is not None

    def ask(request: dict[str, Any]) -> int:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + '\n')
        server.stdin.flush()
        return int(server.stdout.readline())

    def run(
        *arguments: object, file_size_limit: int = 0, environment: dict[str, str] | None = None, code: str = ''
    ) -> Program:
        folder = tmp_path_factory.mktemp('program')
        request = {
            'arguments': [str(one) for one in arguments], 'stdout': str(folder / 'stdout'),
            'stderr': str(folder / 'stderr'), 'file_size_limit': file_size_limit, 'environment': environment or {},
            'code': code,
        }  # fmt: skip
        return Program(ask(request), folder, ask)

    yield run
    server.stdin.close()
    server.wait()
    server.stdout.close()


@pytest.fixture(scope='session')
def start_two(start: StartProgram) -> Callable[..., list[Program]]:
    """`start_two(stage_file, ...)` starts two processes of mtpd-train as torchrun would."""

    def run(*arguments: object, **options: Any) -> list[Program]:
        with socket.create_server(('127.0.0.1', 0)) as free:
            port = free.getsockname()[1]
        shared = {'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
        ranks = [shared | {'RANK': str(rank), 'LOCAL_RANK': str(rank)} for rank in range(2)]
        extra = options.pop('environment', {})
        return [start(*arguments, '--device', 'cpu', environment=one | extra, **options) for one in ranks]

    return run


@pytest.fixture(scope='session')
def wait_for() -> Callable[[Callable[[], object]], None]:
    """`wait_for(condition)` returns when it holds."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.002)

    return wait


@pytest.fixture(scope='session')
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 + 2 images of 64 px, 11 of them to train on."""
    folder = tmp_path_factory.mktemp('small') / 'coco'
    make_synthetic_set(folder, SyntheticSpec(num_train=12, num_val=2, sizes=((64, 64), (64, 48)), shape_px=(14, 40)))
    return folder


@pytest.fixture(scope='session')
def uniform_cache(
    tmp_path_factory: pytest.TempPathFactory, extract_teacher: Callable[..., Path], uniform_set: Path
) -> Path:
    """The cache of a teacher over `uniform_set`."""
    out = tmp_path_factory.mktemp('uniform_cache') / 'cache'
    return extract_teacher(16, out, '--coco', uniform_set, '--scale', '96x96')


@pytest.fixture(scope='session')
def stages(
    tmp_path_factory: pytest.TempPathFactory,
    write_stage: Callable[..., Path],
    extract_teacher: Callable[..., Path],
    small_set: Path,
) -> list[Path]:
    """Two stages: three epochs of batch statistics, MGD's random masks, decay and AdamW, then one more.

    Of 11 images stage 1 makes 6 steps of 2 an epoch, stage 2 makes 2 steps, of two batches and of one.
    """
    folder = tmp_path_factory.mktemp('stages')
    data: dict[str, Any] = {'coco': small_set}
    first = write_stage(
        folder / 'one.yaml',
        cache=extract_teacher(16, folder / 'cache', '--coco', small_set, '--scale', '64x64'),
        distill=[{'loss': 'mgd', 'decay': {'kind': 'cosine'}}, {'loss': 'masked_mse', 'levels': ['p3']}],
        data=data | {'batch_size': 2},
        optim={'epochs': EPOCHS},
    )
    data |= {'val': None, 'batch_size': 4, 'geometry': {'scale': '64x64'}}
    return [first, write_stage(folder / 'two.yaml', data=data, optim={'accumulate': 2})]


@pytest.fixture(scope='session')
def whole(tmp_path_factory: pytest.TempPathFactory, train: Callable[..., Any], stages: list[Path]) -> Path:
    """The run without interruption."""
    out = tmp_path_factory.mktemp('whole') / 'run'
    train(*stages, '--out', out)
    return out


@pytest.fixture(scope='session')
def assert_same_run(whole: Path) -> Callable[[Path], None]:
    """`assert_same_run(run)`: bit for bit the students of `whole`, and its records but for what the clock says."""

    def check(run: Path) -> None:
        for stage in (1, 2):
            found, wanted = weights(run, stage), weights(whole, stage)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], value) for name, value in wanted.items())
        logs = []
        for folder in (run, whole):
            lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
            for line in lines:
                for key in ('images_per_second', 'data_wait', 'peak_memory', 'seconds'):
                    line.pop(key, None)
            logs.append(lines)
        assert logs[0] == logs[1]
        assert not list(run.rglob('.tmp-*'))
        names = [{str(path.relative_to(one)) for path in one.rglob('*') if path.is_file()} for one in (run, whole)]
        assert names[0] == names[1]

    return check


def weights(run: Path, stage: int) -> dict[str, torch.Tensor]:
    state = torch.load(run / f'stage{stage}' / 'student.pth', weights_only=True)['state_dict']
    assert isinstance(state, dict)
    return state


@pytest.fixture
def position(tmp_path: Path) -> Callable[[], tuple[int, int]]:
    """`position()` is the last saved place of stage 1: finished epochs and optimizer steps; (0, 0) where none is."""

    def read() -> tuple[int, int]:
        path = tmp_path / 'run' / 'stage1' / 'progress.pth'
        if not path.exists():
            return 0, 0
        content = torch.load(path, weights_only=True)
        return content['epoch'], content['step']

    return read
