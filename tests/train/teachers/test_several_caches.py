"""Stages that learn from several caches at once."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtpd_train.planning import plan_stage
from mtpd_train.stage import Stage
from mtpd_train.training.step import loaded, step_losses

Build = Callable[..., Stage]
PKD = [{'loss': 'pkd', 'levels': ['p4']}]


@pytest.fixture(scope='module')
def two(
    tmp_path_factory: pytest.TempPathFactory, caches: dict[int, Path], extract_teacher: Callable[..., Path]
) -> dict[str, Path]:
    """Two caches at one geometry: folder name -> cache."""
    folder = tmp_path_factory.mktemp('two')
    return {'16': caches[16], 'v1.5': extract_teacher(16, folder / 'v1.5', '--codec', 'int8', '--levels', 'p4,p5')}


def first_losses(stage: Stage, *, progress: float = 0.0) -> dict[str, float]:
    """The distillation losses of the first batch."""
    torch.manual_seed(0)
    batches = loaded(stage, [stage.epoch_batches(0)[0]])  # what is read is valid as long as this is not asked again
    samples, ahead = next(batches)
    losses = step_losses(stage, samples, ahead, progress=progress)
    return {name: one.item() for name, one in losses.items() if name.startswith('distill/')}


def test_each_teaches_as_it_does_alone(two: dict[str, Path], build_stage: Build) -> None:
    """`pkd` has no adapter between equal channels, so nothing random is in its losses."""
    model = dict.fromkeys(('neck.out_channels', 'bbox_head.in_channels', 'bbox_head.feat_channels'), 16)
    found = first_losses(build_stage(cache=list(map(str, two.values())), distill=PKD, model=model))
    for name, folder in two.items():
        alone = first_losses(build_stage(cache=str(folder), distill=PKD, model=model))
        assert found[f'distill/pkd@{name.replace(".", "_")}/p4'] == alone['distill/pkd/p4'] > 0
    assert len(found) == 2


def test_a_loss_may_choose_and_weights_cross(two: dict[str, Path], build_stage: Build) -> None:
    losses = [
        {'loss': 'pkd', 'levels': ['p4'], 'teacher': '16', 'decay': {'kind': 'linear'}},
        {'loss': 'pkd', 'levels': ['p4'], 'teacher': 'v1.5', 'decay': {'kind': 'linear', 'rise': True}},
        {'loss': 'masked_mse', 'levels': ['p3'], 'teacher': '16'},
        {'loss': 'masked_mse', 'levels': ['p5'], 'teacher': 'v1.5'},
    ]
    stage = build_stage(cache=list(map(str, two.values())), distill=losses)
    at = {share: first_losses(stage, progress=share) for share in (0.0, 0.25, 1.0)}
    old, new = 'distill/pkd@16/p4', 'distill/pkd@v1_5/p4'
    assert at[0.0].keys() == {old, new, 'distill/masked_mse@16/p3', 'distill/masked_mse@v1_5/p5'}
    assert at[0.0][new] == at[1.0][old] == 0
    assert at[0.25][old] == pytest.approx(0.75 * at[0.0][old], rel=1e-5)
    assert at[0.25][new] == pytest.approx(0.25 * at[1.0][new], rel=1e-5)
    assert stage.decay_factors(progress=0.25) == {old: 0.75, new: 0.25}
    # Only levels that a loss compares are read and buffered.
    assert [level.name for level in stage.teacher_levels] == ['16:p3', '16:p4', 'v1.5:p4', 'v1.5:p5']


def test_what_it_takes_is_planned(two: dict[str, Path], build_stage: Build) -> None:
    losses = [{'loss': 'pkd', 'levels': ['p4']}]
    plans = [
        plan_stage(build_stage(cache=place, distill=losses))
        for place in (*map(str, two.values()), list(map(str, two.values())))
    ]
    assert plans[2].cache_bytes == pytest.approx(plans[0].cache_bytes + plans[1].cache_bytes, abs=1)
    assert plans[2].host_bytes - plans[0].host_bytes == plans[1].host_bytes - plan_stage(build_stage()).host_bytes > 0


def test_a_run_and_its_report(
    two: dict[str, Path],
    train: Any,
    train_error: Any,
    write_stage: Any,
    records: Any,
    tmp_path: Path,
    extract_teacher: Callable[..., Path],
) -> None:
    from click.testing import CliRunner

    from mtpd_train.report.cli import main as report

    copies = {name: tmp_path / 'caches' / name for name in two}
    for name, path in two.items():
        shutil.copytree(path, copies[name])
    stage = write_stage(
        tmp_path / 'stage.yaml',
        cache=list(map(str, copies.values())),
        distill=[{'loss': 'masked_mse', 'levels': ['p4']}],
        data={'shuffle': 'shards'},
    )
    out = tmp_path / 'run'
    train(stage, '--out', out)
    described = json.loads((out / 'run.json').read_text())['caches']
    assert described.keys() == set(map(str, copies.values()))
    losses = records(out, 'train')[-1]['losses']
    assert losses.keys() >= {'distill/masked_mse@16/p4', 'distill/masked_mse@v1_5/p4'}
    result = CliRunner().invoke(report, ['page', str(out), '--out', str(tmp_path / 'page.html')])
    assert result.exit_code == 0, result.output
    page = (tmp_path / 'page.html').read_text()
    assert all(str(path) in page for path in copies.values())
    train(stage, '--out', out, '--resume')
    # Another cache in the place of one of them.
    (out / 'student.pth').unlink()
    shutil.rmtree(copies['v1.5'])
    extract_teacher(16, copies['v1.5'], '--codec', 'fp16', '--levels', 'p4,p5')
    assert f'caches.{copies["v1.5"]}.' in train_error(stage, '--out', out, '--resume')


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    'unknown teacher': ({'distill': [{'loss': 'pkd', 'teacher': 'x101'}]}, 'names the teacher x101, but'),
    'unused': ({'distill': [PKD[0] | {'teacher': '16'}]}, 'no loss learns from '),
    'twice': ({'distill': [*PKD, PKD[0] | {'teacher': '16'}]}, 'pkd on p4 twice'),
    'a level that one lacks': ({'distill': [{'loss': 'pkd', 'levels': ['p3']}]}, 'cannot distil p3'),
    'tar_head': ({'distill': [{'loss': 'tar_head', 'mode': 'head_on_gpu'}]}, 'tar_head'),
    'inherit': ({'distill': PKD, 'init': {'backbone': 'none', 'inherit': ['neck']}}, 'init.inherit needs one teacher'),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes(mistake: str, two: dict[str, Path], write_stage: Any, train_error: Any, tmp_path: Path) -> None:
    changes, message = MISTAKES[mistake]
    stage = write_stage(tmp_path / 'stage.yaml', cache=list(map(str, two.values())), **changes)
    assert message in train_error(stage, '--out', tmp_path / 'run')


def test_caches_that_do_not_go_together(
    two: dict[str, Path], caches: dict[int, Path], write_stage: Any, train_error: Any, tmp_path: Path
) -> None:
    def error(*places: object) -> str:
        stage = write_stage(tmp_path / 'stage.yaml', cache=list(map(str, places)), distill=PKD)
        return str(train_error(stage, '--out', tmp_path / 'run'))

    assert 'geometry' in error(two['16'], caches[24])


def test_wrong_settings(problems: Callable[..., str]) -> None:
    text = 'student: s.py\noptim: {{lr: 1, epochs: 1}}\ncache: {}\ndistill: [{{loss: pkd, decay: {}}}]\n'
    for places in ('[a/r101, b/r101]', '[a/r101, s3://bucket/r101]'):
        assert 'two folders have one name' in problems(text.format(places, '{}'))
    assert 'two folders have one name' in problems(text.format('[a/v1.5, v1_5]', '{}'))
    for place in ('"a/b:c"', '".."', '/'):
        assert 'losses choose a cache by' in problems(text.format(f'[{place}, a]', '{}'))
    assert 'cache' in problems(text.format('[a/r101]', '{}'))
    for key in ('init: {checkpoint: "s3://b/w.pth"}', 'data: {mirror: "s3:/b"}'):
        assert 'is a URL' in problems(text.format('a', '{}') + key + '\n')
    assert 'distill.0.decay.rise needs a `kind`' in problems(text.format('a', '{rise: true}'))


def test_one_cache_has_no_name(two: dict[str, Path], write_stage: Any, train_error: Any, tmp_path: Path) -> None:
    stage = write_stage(
        tmp_path / 'stage.yaml', cache=str(two['16']), distill=[{'loss': 'pkd', 'teacher': '16', 'levels': ['p4']}]
    )
    assert 'the teachers are one, which needs no name' in train_error(stage, '--out', tmp_path / 'run')
