"""Stage files: what loads, and how each mistake is told."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from mtpd.errors import InputError
from mtpd.losses.object_terms import FgdTerm, FineGrainedTerm, TarFeatureTerm
from mtpd.losses.terms import CwdTerm, MaskedMseTerm, MgdTerm, PkdTerm
from mtpd_train import data_settings, loss_options, loss_settings, map_loss_settings, object_loss_settings, settings
from mtpd_train.data_settings import FilesSettings
from mtpd_train.map_loss_settings import CwdSettings, MaskedMseSettings, MgdSettings, PkdSettings
from mtpd_train.object_loss_settings import FgdSettings, FineGrainedSettings, TarFeatureSettings
from mtpd_train.settings import StageSettings
from mtpd_train.stage_file import dump_stage, load_stages

# The example of the contract with users; it must load as it is.
CONTRACT = """\
student: retinanet_r50_fpn_1x_coco       # zoo name or path to an mmdet config
cache: cache/r101                         # teacher's cache; geometry and views come from it
init: {checkpoint: null, inherit: [neck, head]}
distill:
  - {loss: mgd, levels: [p3, p4, p5, p6, p7], weight: 2.0e-5, mask_ratio: 0.65}
data: {coco: data/coco, train: train2017, val: val2017, batch_size: 16, workers: 4}
optim: {lr: 0.01, epochs: 12, milestones: [8, 11], warmup_iters: 500, grad_clip: 35}
"""
PLAIN = """\
student: retinanet_r50_fpn_1x_coco
optim:
  lr: 1e-3
  epochs: 12
"""
DECAYED = 'cache: c\ndistill: [{{loss: mgd, decay: {{kind: {}}}}}]\n'


class Loader:
    """Loads a text as a stage file."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / 'stage.yaml'

    def __call__(self, text: str, *overrides: str) -> StageSettings:
        self.path.write_text(text)
        (stage,) = load_stages([self.path], overrides=overrides)
        return stage

    def problems(self, text: str, *overrides: str) -> str:
        """The error's text, without the folder, columns squeezed to single spaces."""
        with pytest.raises(InputError) as caught:
            self(text, *overrides)
        lines = str(caught.value).replace(str(self.path), 'stage.yaml').splitlines()
        return '\n'.join(' '.join(line.split()) for line in lines)


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    return Loader(tmp_path)


def test_the_contracts_example(load: Loader) -> None:
    stage = load(CONTRACT)
    assert stage.student == 'retinanet_r50_fpn_1x_coco'
    assert stage.cache == Path('cache/r101')
    assert stage.init.checkpoint is None
    assert stage.init.inherit == ('neck', 'head')
    assert stage.distill == (MgdSettings(loss='mgd', levels=('p3', 'p4', 'p5', 'p6', 'p7')),)
    assert (stage.data.coco, stage.data.train, stage.data.val) == (Path('data/coco'), 'train2017', 'val2017')
    assert (stage.optim.type, stage.optim.lr, stage.optim.milestones) == ('sgd', 0.01, (8, 11))
    assert (stage.optim.warmup_iters, stage.optim.grad_clip) == (500, 35)


def test_plain_training_without_a_cache(load: Loader) -> None:
    text = PLAIN + (
        'data:\n'
        '  train: {images: ~/a, annotations: a.json}\n'
        '  val: null\n'
        '  geometry: {scale: 416x320, keep_ratio: false, pad_size: [416, 416]}\n'
    )
    stage = load(text)
    assert stage.cache is None
    assert stage.distill == ()
    assert stage.optim.lr == 1e-3
    assert isinstance(stage.data.train, FilesSettings)
    assert stage.data.train.images == Path.home() / 'a'
    assert stage.data.val is None
    assert stage.data.geometry is not None
    assert stage.data.geometry.scale == (416, 320)
    assert stage.data.geometry.pad_size == (416, 416)


@pytest.mark.parametrize(
    'text',
    [
        CONTRACT,
        PLAIN + 'data: {geometry: {scale: [64, 48]}}\nmodel: {backbone.depth: 18}',
        PLAIN + 'cache: c\ndistill: [{loss: pkd, decay: {kind: step, at: [0.5, 0.8]}}]\n',
        PLAIN + 'cache: c\ndistill: [{loss: fgd, attention: 5e-4}, {loss: fine_grained, reference: pyramid}]',
        PLAIN + 'cache: c\ndistill: [{loss: tar_feature, spread: [1, 2]}]',
        PLAIN + 'cache: c\ndistill: [{loss: pkd, levels: [p3, p4], teacher_levels: [p2, p3], resize: student}]',
    ],
)
def test_what_is_printed_reads_as_the_same_stage(load: Loader, text: str) -> None:
    stage = load(text)
    assert load(dump_stage(stage)) == stage


@pytest.mark.parametrize(
    ('override', 'path', 'value'),
    [
        ('optim.lr=2e-4', 'optim.lr', 2e-4),
        ('optim.milestones=[6]', 'optim.milestones', (6,)),
        ('distill.0.weight=3', 'distill.0.weight', 3.0),
        ('distill[0].weight=3', 'distill.0.weight', 3.0),
        ('distill=[]', 'distill', ()),
        ('data.train={images: a, annotations: b}', 'data.train.images', Path('a')),
        ('init.backbone=r18=x.pth', 'init.backbone', 'r18=x.pth'),
        ('model.neck.out_channels=64', 'model.neck.out_channels', 64),
        ('evaluate.every=3', 'evaluate.every', 3),
    ],
)
def test_overrides(load: Loader, override: str, path: str, value: Any) -> None:
    found: Any = load(CONTRACT, override)
    for part in path.split('.'):
        if isinstance(found, tuple):
            found = found[int(part)]
        else:
            found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value


def test_overrides_reach_every_stage(tmp_path: Path) -> None:
    paths = [tmp_path / 'one.yaml', tmp_path / 'two.yaml']
    for path in paths:
        path.write_text(PLAIN)
    assert [stage.seed for stage in load_stages(paths, overrides=['seed=5'])] == [5, 5]
    with pytest.raises(InputError, match=r'^--set seed: expected key\.path=value$'):
        load_stages(paths, overrides=['seed'])


def test_dotted_and_nested_model_keys_and_overrides_are_one(load: Loader) -> None:
    text = PLAIN + 'model: {backbone.depth: 18, backbone: {norm_eval: false}, neck.num_outs: 4}\n'
    stage = load(text, 'model.backbone.depth=34', 'model.bbox_head.stacked_convs=1')
    assert stage.model == {
        'backbone': {'depth': 34, 'norm_eval': False},
        'neck': {'num_outs': 4},
        'bbox_head': {'stacked_convs': 1},
    }


def test_all_problems_at_once(load: Loader) -> None:
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
        load.problems(text, 'seed=x', 'evaluate.evry=2', 'data.worker=3', 'distill[0].weight=-1')
        == """\
stage.yaml has 17 problems
line 3 init.checkpoint expected a text, got 3
line 3 init.inherit.0 must be 'neck' or 'head', got the text 'nek'
line 6 distill.0.levels.1 expected a level such as p3, got the text 'q4'
line 6 distill.0.mask_ratio must be at most 1, got 1.5
line 7 distill.1 loss must be one of 'masked_mse', 'mgd', 'pkd', 'cwd', 'fine_grained', 'tar_feature', 'fgd', \
'tar_head', got the text 'mdg'
line 9 distill.2.adaptr unknown key; did you mean adapter?
line 11 data.train.annotations is missing
line 11 data.train.annot unknown key; did you mean annotations?
line 12 data.batch_size must be greater than 0, got 0
line 13 data.workers expected a whole number, got 1.5
line 15 optim.weight_decy unknown key; did you mean weight_decay?
line 16 optim.epochs expected a whole number, got the text '12'
line 17 optim.lr expected a number, got true
--set distill.0.weight must be at least 0, got -1
--set data.worker unknown key; did you mean workers?
--set evaluate.evry unknown key; did you mean every?
--set seed expected a whole number, got the text 'x'"""
    )


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        (PLAIN + 'epoch: 3\n', 'line 5 epoch unknown key; known are student, model, cache, teacher, checkpoint,'),
        (PLAIN + 'dsitill: []\n', 'line 5 dsitill unknown key; did you mean distill?'),
        ('student: a\n', 'line 1 optim is missing'),
        ('student: a\noptim:\n  epochs: 3\n', 'line 2 optim.lr is missing'),
        ('student: a\noptim: 3\n', 'line 2 optim expected a mapping, got 3'),
        (PLAIN + 'init:\n', 'line 5 init expected a mapping, got nothing'),
        (PLAIN + 'data: {geometry: {scale: 1333}}\n', 'line 5 data.geometry.scale expected a list, got 1333'),
        (PLAIN + 'data: {geometry: {scale: [0, 8]}}\n', 'line 5 data.geometry.scale.0 must be greater than 0, got 0'),
        (PLAIN + '  momentum: .nan\n', 'line 5 optim.momentum'),
        (PLAIN + '  milestones: [8, 3]\n', 'line 5 optim.milestones must rise, got [8, 3]'),
        (PLAIN + '  milestones: [8, 12]\n', 'line 5 optim.milestones must come before the last of 12 epochs, got 12'),
        (
            PLAIN + '  milestones: [8]\n  schedule: cosine\n',
            'line 5 optim.milestones belong to the multistep schedule, not to cosine',
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
            "line 6 distill.0.resize must be 'none', 'student' or 'teacher', got the text 'both'",
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
            "line 6 distill.0.levels.0 expected a level such as p3, got the text 'q4'",
        ),
        (
            PLAIN + 'cache: c\ndistill: [{loss: pkd, tau: 1}]\n',
            'line 6 distill.0.tau unknown key; known are loss, levels',
        ),
        (
            PLAIN + DECAYED.format('linaer'),
            "line 6 distill.0.decay.kind must be 'none', 'linear', 'cosine' or 'step', got",
        ),
        (PLAIN + DECAYED.format('step'), 'line 6 distill.0.decay step needs `at`, such as at: [0.5]'),
        (PLAIN + DECAYED.format('step, at: [1]'), 'line 6 distill.0.decay.at.0 must be less than 1, got 1'),
        (PLAIN + DECAYED.format('step, at: [0.5, 0.3]'), 'line 6 distill.0.decay.at must rise, got [0.5, 0.3]'),
        (
            PLAIN + DECAYED.format('linear, at: [0.5]'),
            'line 6 distill.0.decay.at belongs to the step decay, not to linear',
        ),
        (
            PLAIN + DECAYED.format('step, ta: [0.5], at: [0.5]'),
            'line 6 distill.0.decay.ta unknown key; known are kind, at',
        ),
        (PLAIN + 'distill: [3]\n', 'line 5 distill.0 expected a mapping, got 3'),
        (PLAIN + 'distill: [{weight: 3}]\n', 'line 5 distill.0 needs the key `loss`, got a mapping of weight'),
        (PLAIN + 'init: {inherit: [neck]}\n', 'line 5 init inherit copies weights of a teacher, but neither'),
        (PLAIN + 'cache: c\n', 'line 1 `cache` is set but nothing reads it; add `distill`, or write `distill: []`'),
        (PLAIN + 'teacher: t\n', 'line 1 `teacher` is set but nothing reads it; add `distill`, or write `distill: []`'),
        (
            PLAIN + 'distill: []\nteacher: t\ncache: c\n',
            'line 6 teacher a stage has one teacher, and `cache` is set too; remove one of them',
        ),
        (
            PLAIN + 'checkpoint: a.pth\n',
            "line 5 checkpoint is the teacher's, but `teacher` is not set; the student's is init.checkpoint",
        ),
        (PLAIN + 'cache: c\ndistill: []\ncheckpoint: a\n', "line 7 checkpoint is the teacher's, but `teacher` is not"),
        (
            PLAIN + 'trust_checkpoint: true\n',
            "line 5 trust_checkpoint is for the teacher's checkpoint, but `teacher` is not set",
        ),
        (
            PLAIN + 'distill: []\nteacher: a.py:b\ntrust_checkpoint: true\n',
            'line 7 trust_checkpoint a.py:b reads its checkpoint itself; remove it',
        ),
        (
            PLAIN + 'cache: c\ndistill: []\nhook: neck\n',
            'line 7 hook is for a `teacher`, which is not set; a cache knows where its maps were taken',
        ),
        (PLAIN + 'distill: []\nteacher: t\nhook: nck\n', "line 7 hook must be 'auto', 'neck' or 'before-norm', got"),
        (PLAIN + "distill: []\nteacher: ''\n", 'line 6 teacher must not be empty'),
        (
            PLAIN + 'cache: c\ndistill: []\ndata: {geometry: {}}\n',
            'line 7 data geometry comes from the cache; remove `geometry`',
        ),
    ],
)
def test_single_problems(load: Loader, text: str, problem: str) -> None:
    head, line = load.problems(text).splitlines()
    assert head == 'stage.yaml has 1 problem'
    assert line.startswith(problem)


def test_an_explicit_empty_distill_trains_the_baseline(load: Loader) -> None:
    assert load(PLAIN + 'cache: c\ndistill: []\n').distill == ()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'the stage file stage.yaml is empty'),
        ('# nothing\n', 'the stage file stage.yaml is empty'),
        ('- a\n', 'must hold `key: value` lines, found a list'),
        ('hello\n', 'must hold `key: value` lines, found a single value'),
        ('student: a\nstudent: b\n', 'stage.yaml line 2: found duplicate key student; mend the YAML'),
        ('student: [a\noptim: 3\n', 'stage.yaml line 2: '),
        ('student: a\n---\nstudent: b\n', 'stage.yaml line 2: '),
        ('student: !!python/object/apply:os.system [true]\n', 'stage.yaml line 1: could not determine a constructor'),
        ('student: "\x00"\n', 'stage.yaml: '),
        (PLAIN + 'data: {coco: "${nowhere}"}\n', "stage.yaml: Interpolation key 'nowhere' not found"),
    ],
)
def test_files_that_are_no_stage(load: Loader, content: str, message: str) -> None:
    problems = load.problems(content)
    assert message in problems
    assert '\n' not in problems


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / 'latin.yaml').write_bytes('student: Münze'.encode('latin-1'))
    paths = [tmp_path / 'none.yaml', tmp_path, tmp_path / 'latin.yaml']
    with pytest.raises(InputError) as caught:
        load_stages(paths)
    lines = str(caught.value).splitlines()
    assert lines[0] == f'there is no stage file {tmp_path / "none.yaml"}; check the path'
    assert all(line.startswith('cannot read the stage file') for line in lines[1:])
    assert len(lines) == 3


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('optim.lr', '--set optim.lr: expected key.path=value'),
        ('=3', '--set =3: expected key.path=value'),
        ('optim.lr=[', '--set optim.lr=[: the value is not valid YAML'),
        ('distill.3.weight=1', '--set distill.3.weight=1: the list has no entry of that number'),
    ],
)
def test_overrides_that_cannot_be_set(load: Loader, override: str, message: str) -> None:
    assert load.problems(CONTRACT, override).startswith(message)


def test_a_later_stage_must_not_inherit_over_what_was_learned(tmp_path: Path) -> None:
    paths = [tmp_path / 'one.yaml', tmp_path / 'two.yaml']
    for path in paths:
        path.write_text(CONTRACT)
    with pytest.raises(InputError, match=r'two\.yaml has 1 problem\n  line 3  init\.inherit  would put'):
        load_stages(paths)
    # With a checkpoint of its own the stage starts anew, and may inherit.
    paths[1].write_text(CONTRACT.replace('checkpoint: null', 'checkpoint: a.pth'))
    assert len(load_stages(paths)) == 2


@pytest.mark.parametrize(
    ('section', 'term'),
    [
        (MgdSettings, MgdTerm),
        (MaskedMseSettings, MaskedMseTerm),
        (PkdSettings, PkdTerm),
        (CwdSettings, CwdTerm),
        (FineGrainedSettings, FineGrainedTerm),
        (TarFeatureSettings, TarFeatureTerm),
        (FgdSettings, FgdTerm),
    ],
)
def test_losses_have_the_librarys_options_and_defaults(section: type[BaseModel], term: Any) -> None:
    (loss,) = get_args(section.model_fields['loss'].annotation)
    assert section(loss=loss).model_dump() == {'loss': term.loss} | dataclasses.asdict(term())


def test_a_teacher_in_the_loop(load: Loader) -> None:
    text = PLAIN + 'teacher: r101\ncheckpoint: ~/r101.pth\ntrust_checkpoint: true\ndata: {geometry: {scale: 640x480}}\n'
    stage = load(text + 'init: {inherit: [neck]}\ndistill: [{loss: pkd}]\n')
    assert (stage.teacher, stage.checkpoint, stage.trust_checkpoint) == ('r101', Path.home() / 'r101.pth', True)
    assert stage.data.geometry is not None
    assert load(PLAIN + 'teacher: t\ndistill: []\n').distill == ()


def test_every_field_is_described() -> None:
    losses = (loss_options, map_loss_settings, object_loss_settings, loss_settings)
    values = [value for module in (settings, data_settings, *losses) for value in vars(module).values()]
    sections = [value for value in values if isinstance(value, type) and issubclass(value, BaseModel)]
    assert len(sections) > 10
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description, f'{section.__name__}.{name}'
            assert '\n' not in field.description


def test_reading_stages_imports_no_torch() -> None:
    check = "import sys, mtpd_train.stage_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', check], check=False).returncode == 0
