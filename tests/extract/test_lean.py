"""`--codec lean` end to end: the error of every map, the shared rotation, and going on after an interruption."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import mtpd.cache
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd_extract.cli import main


@pytest.fixture(scope='module')
def lean(tmp_path_factory: pytest.TempPathFactory, command: Any, many_shards: tuple[str, str]) -> Path:
    """A cache of the whole set in many shards."""
    out = tmp_path_factory.mktemp('lean') / 'cache'
    command.run(out, '--codec', 'lean', '--error', 0.05, *many_shards)
    return Path(out)


def test_it_is_the_default(teacher_file: Path, synthetic_set: Path, tmp_path: Path) -> None:
    options = ['--teacher', f'{teacher_file}:build', '--coco', str(synthetic_set), '--out', str(tmp_path / 'cache')]
    result = CliRunner().invoke(main, [*options, '--limit', '3'])
    assert result.exit_code == 0, result.output
    description = mtpd.cache.open(tmp_path / 'cache').manifest.description
    assert (description.codec, description.target_error) == ('lean', 0.03)


def test_every_map_keeps_the_error_and_says_what_it_is(lean: Path, command: Any, tmp_path: Path) -> None:
    command.run(tmp_path / 'exact', '--codec', 'fp16')
    cache, exact = mtpd.cache.open(lean), mtpd.cache.open(tmp_path / 'exact')
    assert cache.manifest.description.target_error == 0.05
    assert cache.image_ids == exact.image_ids
    for image_id in cache.image_ids:
        for view in cache.views:
            found, wanted, errors = cache.read(image_id, view), exact.read(image_id, view), cache.errors(image_id, view)
            for name, maps in wanted.items():
                error = (found[name] - maps).double().square().sum() / maps.double().square().sum()
                assert errors[name] == pytest.approx(error.item(), rel=0.02)
                assert errors[name] <= 0.05 * 1.001


def test_the_basis_is_orthonormal(lean: Path) -> None:
    for level, basis in mtpd.cache.open(lean).bases.items():
        torch.testing.assert_close(basis.T @ basis, torch.eye(len(basis)), rtol=0, atol=1e-5, msg=level)


def test_kill_9_then_the_same_command_uses_the_same_basis(
    lean: Path, command: Any, slow: Path, many_shards: tuple[str, str], tmp_path: Path, contents: Any
) -> None:
    out = tmp_path / 'cache'
    options = ('--codec', 'lean', '--error', 0.05, *many_shards)
    with command.forked(out, *options, '--checkpoint', slow) as child:
        while not (out / 'journal.jsonl').exists():
            child.require_running()
        child.signal(signal.SIGKILL)
        child.wait()
    before = (out / BASIS_FILE).read_bytes()
    command.run(out, *options, '--checkpoint', slow)
    assert (out / BASIS_FILE).read_bytes() == before
    assert contents(out) == contents(lean)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (('--error', 0.1), 'applies to --codec lean only, but the codec is int8'),
        (('--codec', 'lean', '--error', 0.1), 'target_error is 0.05 there and 0.1 here'),
    ],
)
def test_refusals(command: Any, lean: Path, many_shards: tuple[str, str], options: Any, message: str) -> None:
    assert message in command.error(lean, *many_shards, *options)
