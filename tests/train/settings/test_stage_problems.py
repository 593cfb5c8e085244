"""What is wrong in a stage file is said with its line and key, all at once."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mtpd.errors import InputError
from mtpd_train.cli import main
from mtpd_train.settings.stage_file import load_stages

PLAIN = """\
student: retinanet_r50_fpn_1x_coco
optim:
  lr: 1e-3
  epochs: 12
"""
DECAYED = 'cache: c\ndistill: [{{loss: mgd, decay: {{kind: {}}}}}]\n'
LOSSES = ('masked_mse', 'mgd', 'pkd', 'cwd', 'fine_grained', 'tar_feature', 'fgd', 'tar_head')
Problems = Callable[..., str]


def require(line: str, place: str, facts: list[str]) -> None:
    """A problem starts with its line and key; it states the value that was found and what was wanted."""
    assert re.match(re.escape(place) + r'(?![\w.])', line), line
    assert [fact for fact in facts if fact not in line.removeprefix(place)] == [], line


def test_all_problems_at_once(problems: Problems) -> None:
    text = """\
student: retinanet_r50_fpn_1x_coco
cache: cache/r101
init: {inherit: [nek], checkpoint:
    3}
distill:
  - {loss: mgd, levels: [p3, q4], mask_ratio: 1.5}
  - loss: mdg
  - {loss: masked_mse,
     adaptr: always}
data:
  train: {images: a, annot: b}
  batch_size: 0
  workers: 1.5
optim:
  weight_decy: 1
  epochs: '12'
  lr: true
"""
    head, *lines = problems(text, 'seed=x', 'evaluate.evry=2', 'data.worker=3', 'distill[0].weight=-1').splitlines()
    assert head == 'stage.yaml has 17 problems'
    wanted = [
        ('line 3 init.checkpoint', ['a string', 'got 3']),
        ('line 3 init.inherit.0', ["'neck'", "'head'", "'nek'"]),
        ('line 6 distill.0.levels.1', ['a level', 'p3', "'q4'"]),
        ('line 6 distill.0.mask_ratio', ['at most 1', 'got 1.5']),
        ('line 7 distill.1', [*map(repr, (*LOSSES, 'mdg'))]),
        ('line 9 distill.2.adaptr', ['unknown key', 'adapter']),
        ('line 11 data.train.annotations', ['is missing']),
        ('line 11 data.train.annot', ['unknown key', 'annotations']),
        ('line 12 data.batch_size', ['greater than 0', 'got 0']),
        ('line 13 data.workers', ['a whole number', 'got 1.5']),
        ('line 15 optim.weight_decy', ['unknown key', 'weight_decay']),
        ('line 16 optim.epochs', ['a whole number', "'12'"]),
        ('line 17 optim.lr', ['a number', 'true']),
        ('--set distill.0.weight', ['at least 0', '-1']),
        ('--set data.worker', ['unknown key', 'workers']),
        ('--set evaluate.evry', ['unknown key', 'every']),
        ('--set seed', ['a whole number', "'x'"]),
    ]
    for line, (place, facts) in zip(lines, wanted, strict=True):
        require(line, place, facts)


@pytest.mark.parametrize(
    ('text', 'place', 'facts'),
    [
        (PLAIN + 'epoch: 3\n', 'line 5 epoch', ['unknown key', 'student', 'model']),
        (PLAIN + 'dsitill: []\n', 'line 5 dsitill', ['unknown key', 'distill']),
        ('student: a\n', 'line 1 optim', ['is missing']),
        ('student: a\noptim:\n  epochs: 3\n', 'line 2 optim.lr', ['is missing']),
        ('student: a\noptim: 3\n', 'line 2 optim', ['a mapping', 'got 3']),
        (PLAIN + 'init:\n', 'line 5 init', ['a mapping', 'nothing']),
        (PLAIN + 'data: {geometry: {scale: 1333}}\n', 'line 5 data.geometry.scale', ['a list', 'got 1333']),
        (PLAIN + 'data: {geometry: {scale: [0, 8]}}\n', 'line 5 data.geometry.scale.0', ['greater than 0', 'got 0']),
        (PLAIN + '  momentum: .nan\n', 'line 5 optim.momentum', []),
        (PLAIN + '  milestones: [8, 3]\n', 'line 5 optim.milestones', ['[8, 3]']),
        (PLAIN + '  milestones: [8, 12]\n', 'line 5 optim.milestones', ['12', 'got 12']),
        (
            PLAIN + '  milestones: [8]\n  schedule: cosine\n',
            'line 5 optim.milestones',
            ['multistep', 'cosine'],
        ),
        (
            PLAIN + '  schedule: cosine\n  min_lr: 1\n',
            'line 6 optim.min_lr',
            ['lr', '0.001', 'got 1'],
        ),
        (
            PLAIN + '  min_lr: 1e-5\n',
            'line 5 optim.min_lr',
            ['cosine', 'linear', 'multistep'],
        ),
        *(
            (
                PLAIN + f'data: {{{key}: 1}}\n',
                f'line 5 data.{key}',
                ['geometric augmentation'],
            )
            for key in ('rotate', 'random_crop', 'mosaic', 'scale_jitter', 'mixup')
        ),
        (PLAIN + 'data: {photometric: {hue: 0.6}}\n', 'line 5 data.photometric.hue', ['at most 0.5', 'got 0.6']),
        (
            PLAIN + 'data: {photometric: {brightnes: 0.6}}\n',
            'line 5 data.photometric.brightnes',
            ['unknown key', 'brightness'],
        ),
        (PLAIN + 'distill: [{loss: mgd}]\n', 'line 5 distill', ['`cache`']),
        (
            PLAIN + 'cache: c\ndistill: [{loss: cwd, temperature: 0}]\n',
            'line 6 distill.0.temperature',
            ['greater than 0'],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: fine_grained, threshold: 1}]\n',
            'line 6 distill.0.threshold',
            ['less than 1', 'got 1'],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: fgd, forground: 1}]\n',
            'line 6 distill.0.forground',
            ['unknown key', 'foreground'],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: tar_feature, spread: [2]}]\n',
            'line 6 distill.0.spread.1',
            ['is missing'],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, resize: both}]\n',
            'line 6 distill.0.resize',
            ["'none'", "'student'", "'teacher'", "'both'"],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: [p3, p4], teacher_levels: [p2]}]\n',
            'line 6 distill.0.teacher_levels',
            ['`levels`', '2', 'got 1'],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, teacher_levels: [p2]}]\n',
            'line 6 distill.0.teacher_levels',
            ['`levels`', '0', 'got 1'],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: []}]\n',
            'line 6 distill.0.levels',
            ['at least 1', 'got 0'],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: [q4]}]\n',
            'line 6 distill.0.levels.0',
            ['a level', 'p3', "'q4'"],
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, tau: 1}]\n',
            'line 6 distill.0.tau',
            ['unknown key', 'loss', 'levels'],
        ),
        (
            PLAIN + DECAYED.format('linaer'),
            'line 6 distill.0.decay.kind',
            ["'none'", "'linear'", "'cosine'", "'step'"],
        ),
        (PLAIN + DECAYED.format('step'), 'line 6 distill.0.decay', ['`at`', '[0.5]']),
        (PLAIN + DECAYED.format('step, at: [1]'), 'line 6 distill.0.decay.at.0', ['less than 1', 'got 1']),
        (PLAIN + DECAYED.format('step, at: [0.5, 0.3]'), 'line 6 distill.0.decay.at', ['[0.5, 0.3]']),
        (
            PLAIN + DECAYED.format('linear, at: [0.5]'),
            'line 6 distill.0.decay.at',
            ['linear'],
        ),
        (
            PLAIN + DECAYED.format('step, ta: [0.5], at: [0.5]'),
            'line 6 distill.0.decay.ta',
            ['unknown key', 'kind', 'at'],
        ),
        (PLAIN + 'distill: [3]\n', 'line 5 distill.0', ['a mapping', 'got 3']),
        (PLAIN + 'distill: [{weight: 3}]\n', 'line 5 distill.0', ['`loss`', 'a mapping of weight']),
        (PLAIN + 'init: {inherit: [neck]}\n', 'line 5 init', ['inherit']),
        (PLAIN + 'cache: c\n', 'line 1', ['`cache`', '`distill`', '`distill: []`']),
        (PLAIN + 'teacher: t\n', 'line 1', ['`teacher`', '`distill`', '`distill: []`']),
        (
            PLAIN + 'distill: []\nteacher: t\ncache: c\n',
            'line 6 teacher',
            ['`cache`'],
        ),
        (
            PLAIN + 'checkpoint: a.pth\n',
            'line 5 checkpoint',
            ['`teacher`'],
        ),
        (PLAIN + 'cache: c\ndistill: []\ncheckpoint: a\n', 'line 7 checkpoint', ['`teacher`']),
        (
            PLAIN + 'trust_checkpoint: true\n',
            'line 5 trust_checkpoint',
            ['`teacher`'],
        ),
        (
            PLAIN + 'distill: []\nteacher: a.py:b\ntrust_checkpoint: true\n',
            'line 7 trust_checkpoint',
            ['a.py:b'],
        ),
        (
            PLAIN + 'cache: c\ndistill: []\nhook: neck\n',
            'line 7 hook',
            ['`teacher`'],
        ),
        (PLAIN + 'distill: []\nteacher: t\nhook: nck\n', 'line 7 hook', ["'auto'", "'neck'", "'before-norm'"]),
        (PLAIN + "distill: []\nteacher: ''\n", 'line 6 teacher', ['not be empty']),
        (
            PLAIN + 'cache: c\ndistill: []\ndata: {geometry: {}}\n',
            'line 7 data',
            ['`geometry`'],
        ),
        (
            PLAIN + 'data: {shuffle: shards}\n',
            'line 5 data',
            ['shuffle: shards', '`cache`'],
        ),
    ],
)
def test_single_problems(problems: Problems, text: str, place: str, facts: list[str]) -> None:
    head, line = problems(text).splitlines()
    assert head == 'stage.yaml has 1 problem'
    require(line, place, facts)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'the stage file stage.yaml is empty'),
        ('# nothing\n', 'the stage file stage.yaml is empty'),
        ('- a\n', 'must hold `key: value` lines, found a list'),
        ('hello\n', 'must hold `key: value` lines, found a single value'),
        (
            'student: a\n---\nstudent: b\n',
            'stage.yaml line 2: a second YAML document starts here; use one file per stage; fix the YAML',
        ),
        ('student: a\nstudent: b\n', 'stage.yaml line 2: found duplicate key student; fix the YAML'),
        ('student: [a\noptim: 3\n', 'stage.yaml line 2: '),
        ('student: a\n---\nstudent: b\n', 'stage.yaml line 2: '),
        ('student: !!python/object/apply:os.system [true]\n', 'stage.yaml line 1: could not determine a constructor'),
        ('student: "\x00"\n', 'stage.yaml: '),
        (PLAIN + 'data: {coco: "${nowhere}"}\n', "stage.yaml: Interpolation key 'nowhere' not found"),
    ],
)
def test_files_that_are_no_stage(problems: Problems, content: str, message: str) -> None:
    line = problems(content)
    assert message in line
    assert '\n' not in line


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / 'latin.yaml').write_bytes('student: Münze'.encode('latin-1'))
    paths = [tmp_path / 'none.yaml', tmp_path, tmp_path / 'latin.yaml']
    with pytest.raises(InputError) as caught:
        load_stages(paths)
    lines = str(caught.value).splitlines()
    assert lines[0] == '3 stage files have problems'
    assert lines[1] == f'  there is no stage file {tmp_path / "none.yaml"}; check the path'
    assert all(line.startswith('  cannot read the stage file') for line in lines[2:])
    assert len(lines) == 4


def test_problems_of_several_files_are_shown_line_by_line(tmp_path: Path) -> None:
    for name in ('one.yaml', 'two.yaml'):
        (tmp_path / name).write_text('student: a\noptim: {lr: 0}\n')
    result = CliRunner().invoke(main, [str(tmp_path / 'one.yaml'), str(tmp_path / 'two.yaml'), '--out', 'run'])
    assert result.exit_code == 1
    assert [' '.join(line.replace(f'{tmp_path}/', '').split()) for line in result.stderr.splitlines()] == [
        'Error: 2 stage files have problems',
        'one.yaml has 2 problems',
        'line 2 optim.lr must be greater than 0, got 0',
        'line 2 optim.epochs is missing',
        'two.yaml has 2 problems',
        'line 2 optim.lr must be greater than 0, got 0',
        'line 2 optim.epochs is missing',
    ]


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('optim.lr', '--set optim.lr: expected key.path=value'),
        ('=3', '--set =3: expected key.path=value'),
        ('optim.lr=[', '--set optim.lr=[: the value is not valid YAML'),
        ('distill.3.weight=1', '--set distill.3.weight=1: the list has no entry of that index'),
        ('distill.x.weight=1', '--set distill.x.weight=1: a list needs the number of an entry, such as distill.0'),
        ('optim.lr.x=1', 'stage.yaml has 1 problem\n--set optim.lr expected a number, got a mapping of x'),
    ],
)
def test_overrides_that_cannot_be_set(problems: Problems, override: str, message: str) -> None:
    assert problems(PLAIN + 'cache: c\ndistill: [{loss: mgd}]\n', override).startswith(message)
