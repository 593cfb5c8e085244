"""What is wrong in a stage file is said with its line and key, all at once."""

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
Problems = Callable[..., str]


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
    assert (
        problems(text, 'seed=x', 'evaluate.evry=2', 'data.worker=3', 'distill[0].weight=-1')
        == """\
stage.yaml has 17 problems
line 3 init.checkpoint expected a string, got 3
line 3 init.inherit.0 must be 'neck' or 'head', got the string 'nek'
line 6 distill.0.levels.1 expected a level such as p3, got the string 'q4'
line 6 distill.0.mask_ratio must be at most 1, got 1.5
line 7 distill.1 loss must be one of 'masked_mse', 'mgd', 'pkd', 'cwd', 'fine_grained', 'tar_feature', 'fgd', \
'tar_head', got the string 'mdg'
line 9 distill.2.adaptr unknown key; did you mean adapter?
line 11 data.train.annotations is missing
line 11 data.train.annot unknown key; did you mean annotations?
line 12 data.batch_size must be greater than 0, got 0
line 13 data.workers expected a whole number, got 1.5
line 15 optim.weight_decy unknown key; did you mean weight_decay?
line 16 optim.epochs expected a whole number, got the string '12'
line 17 optim.lr expected a number, got true
--set distill.0.weight must be at least 0, got -1
--set data.worker unknown key; did you mean workers?
--set evaluate.evry unknown key; did you mean every?
--set seed expected a whole number, got the string 'x'"""
    )


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        (PLAIN + 'epoch: 3\n', 'line 5 epoch unknown key; known keys are student, model, cache, teacher, checkpoint,'),
        (PLAIN + 'dsitill: []\n', 'line 5 dsitill unknown key; did you mean distill?'),
        ('student: a\n', 'line 1 optim is missing'),
        ('student: a\noptim:\n  epochs: 3\n', 'line 2 optim.lr is missing'),
        ('student: a\noptim: 3\n', 'line 2 optim expected a mapping, got 3'),
        (PLAIN + 'init:\n', 'line 5 init expected a mapping, got nothing'),
        (PLAIN + 'data: {geometry: {scale: 1333}}\n', 'line 5 data.geometry.scale expected a list, got 1333'),
        (PLAIN + 'data: {geometry: {scale: [0, 8]}}\n', 'line 5 data.geometry.scale.0 must be greater than 0, got 0'),
        (PLAIN + '  momentum: .nan\n', 'line 5 optim.momentum'),
        (PLAIN + '  milestones: [8, 3]\n', 'line 5 optim.milestones must increase, got [8, 3]'),
        (PLAIN + '  milestones: [8, 12]\n', 'line 5 optim.milestones must come before the last of 12 epochs, got 12'),
        (
            PLAIN + '  milestones: [8]\n  schedule: cosine\n',
            'line 5 optim.milestones belong to the multistep schedule, not to cosine',
        ),
        (
            PLAIN + '  schedule: cosine\n  min_lr: 1\n',
            'line 6 optim.min_lr must be less than lr, which is 0.001, got 1',
        ),
        (
            PLAIN + '  min_lr: 1e-5\n',
            'line 5 optim.min_lr belongs to the cosine and linear schedules, not to multistep',
        ),
        *(
            (
                PLAIN + f'data: {{{key}: 1}}\n',
                f'line 5 data.{key} geometric augmentation is not possible: a cache holds the maps of',
            )
            for key in ('rotate', 'random_crop', 'mosaic', 'scale_jitter', 'mixup')
        ),
        (PLAIN + 'data: {photometric: {hue: 0.6}}\n', 'line 5 data.photometric.hue must be at most 0.5, got 0.6'),
        (
            PLAIN + 'data: {photometric: {brightnes: 0.6}}\n',
            'line 5 data.photometric.brightnes unknown key; did you mean brightness?',
        ),
        (PLAIN + 'distill: [{loss: mgd}]\n', "line 5 distill needs a teacher's maps, but neither `cache` nor"),
        (
            PLAIN + 'cache: c\ndistill: [{loss: cwd, temperature: 0}]\n',
            'line 6 distill.0.temperature must be greater than',
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: fine_grained, threshold: 1}]\n',
            'line 6 distill.0.threshold must be less than 1, got 1',
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: fgd, forground: 1}]\n',
            'line 6 distill.0.forground unknown key; did you mean foreground?',
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: tar_feature, spread: [2]}]\n',
            'line 6 distill.0.spread.1 is missing',
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, resize: both}]\n',
            "line 6 distill.0.resize must be 'none', 'student' or 'teacher', got the string 'both'",
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: [p3, p4], teacher_levels: [p2]}]\n',
            'line 6 distill.0.teacher_levels needs one level for each of `levels`, which has 2, got 1',
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, teacher_levels: [p2]}]\n',
            'line 6 distill.0.teacher_levels needs one level for each of `levels`, which has 0, got 1',
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: []}]\n',
            'line 6 distill.0.levels must have at least 1 entries, got 0',
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: [q4]}]\n',
            "line 6 distill.0.levels.0 expected a level such as p3, got the string 'q4'",
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, tau: 1}]\n',
            'line 6 distill.0.tau unknown key; known keys are loss, levels',
        ),
        (
            PLAIN + DECAYED.format('linaer'),
            "line 6 distill.0.decay.kind must be 'none', 'linear', 'cosine' or 'step', got",
        ),
        (PLAIN + DECAYED.format('step'), 'line 6 distill.0.decay step needs `at`, such as at: [0.5]'),
        (PLAIN + DECAYED.format('step, at: [1]'), 'line 6 distill.0.decay.at.0 must be less than 1, got 1'),
        (PLAIN + DECAYED.format('step, at: [0.5, 0.3]'), 'line 6 distill.0.decay.at must increase, got [0.5, 0.3]'),
        (
            PLAIN + DECAYED.format('linear, at: [0.5]'),
            'line 6 distill.0.decay.at belongs to the step decay, not to linear',
        ),
        (
            PLAIN + DECAYED.format('step, ta: [0.5], at: [0.5]'),
            'line 6 distill.0.decay.ta unknown key; known keys are kind, at',
        ),
        (PLAIN + 'distill: [3]\n', 'line 5 distill.0 expected a mapping, got 3'),
        (PLAIN + 'distill: [{weight: 3}]\n', 'line 5 distill.0 needs the key `loss`, got a mapping of weight'),
        (PLAIN + 'init: {inherit: [neck]}\n', 'line 5 init inherit copies weights of a teacher, but neither'),
        (PLAIN + 'cache: c\n', 'line 1 `cache` is set but not used; add `distill`, or write `distill: []`'),
        (PLAIN + 'teacher: t\n', 'line 1 `teacher` is set but not used; add `distill`, or write `distill: []`'),
        (
            PLAIN + 'distill: []\nteacher: t\ncache: c\n',
            'line 6 teacher cannot be combined with `cache`',
        ),
        (
            PLAIN + 'checkpoint: a.pth\n',
            'line 5 checkpoint belongs to `teacher`, which is not set',
        ),
        (PLAIN + 'cache: c\ndistill: []\ncheckpoint: a\n', 'line 7 checkpoint belongs to `teacher`, which is not set'),
        (
            PLAIN + 'trust_checkpoint: true\n',
            'line 5 trust_checkpoint applies to the checkpoint of `teacher`, which is not set',
        ),
        (
            PLAIN + 'distill: []\nteacher: a.py:b\ntrust_checkpoint: true\n',
            'line 7 trust_checkpoint a.py:b loads its own checkpoint; remove it',
        ),
        (
            PLAIN + 'cache: c\ndistill: []\nhook: neck\n',
            'line 7 hook applies to `teacher`, which is not set',
        ),
        (PLAIN + 'distill: []\nteacher: t\nhook: nck\n', "line 7 hook must be 'auto', 'neck' or 'before-norm', got"),
        (PLAIN + "distill: []\nteacher: ''\n", 'line 6 teacher must not be empty'),
        (
            PLAIN + 'cache: c\ndistill: []\ndata: {geometry: {}}\n',
            'line 7 data the cache defines the geometry; remove `geometry`',
        ),
        (
            PLAIN + 'data: {shuffle: shards}\n',
            'line 5 data shuffle: shards needs a cache, but `cache` is not set',
        ),
    ],
)
def test_single_problems(problems: Problems, text: str, problem: str) -> None:
    head, line = problems(text).splitlines()
    assert head == 'stage.yaml has 1 problem'
    assert line.startswith(problem)


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
