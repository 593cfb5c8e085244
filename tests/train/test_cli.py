"""The options of `mtpd-train` that do not train."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mtpd_train.cli import main
from mtpd_train.settings.stage_file import load_stages

WriteStage = Callable[..., Path]


def test_help_has_examples_and_imports_no_torch() -> None:
    code = (
        'import sys\nfrom mtpd_train.cli import main\n'
        'try:\n    main(["--help"])\nfinally:\n'
        '    assert not {"torch", "numpy", "pydantic", "yaml"} & set(sys.modules), "heavy imports"\n'
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 5
    assert 'Examples:' in result.stdout
    for option in ('--out', '--set', '--resume', '--dry-run', '--print-config', '--device', 'STAGE.yaml'):
        assert option in result.stdout
    for line in (line for line in result.stdout.splitlines() if line.strip().startswith('mtpd-train ')):
        arguments = line.split()[1:]
        arguments = arguments[: arguments.index('>')] if '>' in arguments else arguments
        assert main.make_context('mtpd-train', arguments).params['stages']


@pytest.mark.parametrize(
    'arguments',
    [[], ['a.yaml'], ['--out', 'run'], ['a.yaml', '--out', 'run', '--device', 'tpu'], ['a.yaml', '--out', 'run', '-x']],
)
def test_usage_errors(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert 'Usage:' in result.stderr


def test_out_may_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / 'run').write_text('')
    assert CliRunner().invoke(main, ['a.yaml', '--out', str(tmp_path / 'run')]).exit_code == 2


def test_a_dry_run_writes_nothing(
    train: Callable[..., Any], write_stage: WriteStage, caches: dict[int, Path], tmp_path: Path
) -> None:
    one = write_stage(tmp_path / 'one.yaml')
    two = write_stage(tmp_path / 'two.yaml', cache=caches[16], distill=[{'loss': 'masked_mse', 'levels': ['p3']}])
    output = train(one, two, '--out', tmp_path / 'run', '--dry-run').output
    assert 'Dry run: nothing was trained or written.' in output
    start = 'random weights (init.backbone: none); 23 of 24 images (those with objects) at 128x128'
    assert f'stage 1: 0.24 M parameters, {start}' in output
    assert 'student of stage 1' in output
    assert f'cache {caches[16]} (plain, flip), distillation losses: masked_mse/p3, 1 epoch' in output
    assert not (tmp_path / 'run').exists()


def test_more_workers_than_cores_are_told_once(
    train: Callable[..., Any], write_stage: WriteStage, tmp_path: Path
) -> None:
    stages = [write_stage(tmp_path / f'{name}.yaml', data={'workers': 5000}) for name in 'ab']
    error = train(*stages, '--out', tmp_path / 'run', '--dry-run', '--trial-steps', 0).stderr
    assert error.startswith('warning: data.workers is 5000, more than the ')
    assert error.count('\n') == 1


def test_a_dry_run_checks_everything(train_error: Callable[..., str], write_stage: WriteStage, tmp_path: Path) -> None:
    one = write_stage(tmp_path / 'one.yaml')
    two = write_stage(tmp_path / 'two.yaml', cache=tmp_path / 'nowhere', distill=[])
    assert 'nowhere: no cache here' in train_error(one, two, '--out', tmp_path / 'run', '--dry-run')


def test_print_config_prints_stages_that_load(
    train: Callable[..., Any], write_stage: WriteStage, tmp_path: Path
) -> None:
    """Needs neither data nor caches."""
    files = [
        write_stage(tmp_path / 'one.yaml', data={'coco': 'nowhere'}),
        write_stage(tmp_path / 'two.yaml', cache='nowhere', distill=[{'loss': 'mgd'}]),
    ]
    output = train(*files, '--out', tmp_path / 'run', '--print-config', '--set', 'optim.lr=0.125').output
    for number, text in enumerate(output.split('---\n')):
        (tmp_path / f'{number}.yaml').write_text(text)
    printed = load_stages([tmp_path / '0.yaml', tmp_path / '1.yaml'])
    assert printed == load_stages(files, overrides=['optim.lr=0.125'])
    assert printed[1].distill[0].loss == 'mgd'
    assert not (tmp_path / 'run').exists()


def test_verbose_shows_the_traceback(write_stage: WriteStage, tmp_path: Path) -> None:
    stage = write_stage(tmp_path / 'stage.yaml', student='nowhere.py')
    result = CliRunner().invoke(main, [str(stage), '--out', str(tmp_path / 'run'), '-v'])
    assert result.exit_code == 1
    assert 'Traceback (most recent call last)' in result.stderr
    assert result.stderr.splitlines()[-1].startswith('Error: ')
    assert 'there is no such file' in result.stderr.splitlines()[-1]
