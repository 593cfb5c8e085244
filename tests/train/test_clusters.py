"""The scripts for Slurm, with a scheduler that is made up: arrays of parts, and machines with networks of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mtpd.cache
from mtpd_extract.cli import main as mtpd_extract

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / 'scripts' / 'slurm'
DEMO = ROOT / 'configs' / 'demo'
pytestmark = pytest.mark.slow


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """With the programs of this environment, and those in `folder`, before others."""
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ['PATH']])
    return os.environ | {'PATH': path, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''} | variables


def teacher_options(synthetic_set: Path) -> list[str]:
    teacher = ['--teacher', str(DEMO / 'teachers' / 'weak.py'), '--checkpoint', str(DEMO / 'teachers' / 'weak.pth')]
    return [*teacher, '--coco', str(synthetic_set), '--codec', 'int8', '--shard-mb', '0.05']


def test_an_array_of_parts(synthetic_set: Path, tmp_path: Path) -> None:
    options = teacher_options(synthetic_set)
    command = ['bash', str(SCRIPTS / 'extract.sbatch'), *options, '--out', str(tmp_path / 'cache')]
    jobs = []
    for number in (3, 4, 5):
        array = {'ID': str(number), 'MIN': '3', 'COUNT': '3'}
        variables = {f'SLURM_ARRAY_TASK_{name}': value for name, value in array.items()}
        jobs.append(subprocess.Popen(command, env=environment(tmp_path, **variables)))
    assert [job.wait() for job in jobs] == [0, 0, 0]
    mtpd_extract.main([*options, '--out', str(tmp_path / 'single')], standalone_mode=False)
    cache, single = (mtpd.cache.open(tmp_path / name) for name in ('cache', 'single'))
    assert cache.manifest.files == single.manifest.files


SRUN = """#!/usr/bin/env bash
for node in 0 1; do
    SLURM_NODEID=$node SLURM_JOB_NUM_NODES=2 GLOO_SOCKET_IFNAME=PREFIXv$node ip netns exec PREFIX$node "$@" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
"""


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Path]:
    """A folder with a made-up `srun` and `scontrol` for two machines: network namespaces with a cable between them."""
    prefix = f'm{os.getpid() % 10**6}'
    commands = [
        f'ip netns add {prefix}0',
        f'ip netns add {prefix}1',
        f'ip link add {prefix}v0 type veth peer name {prefix}v1',
    ]
    for number in (0, 1):
        inside = f'ip -n {prefix}{number}'
        commands += [
            f'ip link set {prefix}v{number} netns {prefix}{number}',
            f'{inside} addr add 10.77.0.{number + 1}/24 dev {prefix}v{number}',
            f'{inside} link set {prefix}v{number} up',
            f'{inside} link set lo up',
        ]
    try:
        for one in commands:
            try:
                subprocess.run(one.split(), check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f'network namespaces cannot be made here: {one} ({error})')
        for name, text in (('srun', SRUN.replace('PREFIX', prefix)), ('scontrol', '#!/bin/sh\necho 10.77.0.1\n')):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        yield tmp_path
    finally:
        for number in (0, 1):
            subprocess.run(['ip', 'netns', 'del', f'{prefix}{number}'], check=False, capture_output=True)


def test_two_machines(machines: Path, synthetic_set: Path, tmp_path: Path) -> None:
    """They train the student of a single process, and the same command resumes a run that is there."""
    mtpd_extract.main([*teacher_options(synthetic_set), '--out', str(tmp_path / 'cache')], standalone_mode=False)
    stage = {
        'student': str(DEMO / 'student.py'),
        'cache': str(tmp_path / 'cache'),
        # Without batch statistics, which are those of each process.
        'model': {'backbone': {'norm_eval': True}},
        'init': {'backbone': 'none'},
        'distill': [{'loss': 'masked_mse'}],
        'data': {'coco': str(synthetic_set), 'val': None, 'batch_size': 4, 'workers': 1},
        'optim': {'lr': 1e-3, 'epochs': 1, 'grad_clip': 1},
    }
    (tmp_path / 'stage.yaml').write_text(json.dumps(stage))
    options = [str(tmp_path / 'stage.yaml'), '--device', 'cpu', '--out']
    variables = {'SLURM_JOB_NODELIST': 'a,b', 'SLURM_GPUS_ON_NODE': '1'}
    command = ['bash', str(SCRIPTS / 'train.sbatch'), *options, str(tmp_path / 'two')]
    for _ in range(2):
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment(machines, **variables), timeout=200, check=False
        )
        assert result.returncode == 0, result.stderr
    assert 'finished before' in result.stdout
    single = ['mtpd-train', *options, str(tmp_path / 'one')]
    subprocess.run(single, check=True, capture_output=True, env=environment(machines))
    one, two = (torch.load(tmp_path / name / 'student.pth', weights_only=True)['state_dict'] for name in ('one', 'two'))
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)
