"""What the study trains: chains of stages, and the questions that they answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FULL = 120  # epochs of a full stage
HALF = FULL // 2
# Of scripts/make_synthetic.py.
DATA = {'train': 300, 'val': 500, 'seed': 0}
# Entries of `distill`.
LOSSES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    'masked_mse': [{'loss': 'masked_mse', 'weight': 3.0}],
    'mgd': [{'loss': 'mgd', 'weight': 1.0, 'normalize': 'mean', 'scale': 'teacher_std'}],
    'pkd': [{'loss': 'pkd', 'weight': 3.0}],
    'cwd': [{'loss': 'cwd', 'weight': 10.0}],
    'fgd': [{'loss': 'fgd', 'weight': 1.0}],
    'fgd_means': [
        {'loss': 'fgd', 'normalize': 'mean', 'foreground': 1.0, 'background': 0.5, 'attention': 0.05, 'relation': 1.0}
    ],
    'tar_feature': [{'loss': 'tar_feature', 'weight': 3.0}],
    'tar_head': [{'loss': 'tar_head'}],
    'tar_classes': [{'loss': 'tar_head', 'box_weight': 0.0}],
    'tar_light_boxes': [{'loss': 'tar_head', 'box_weight': 0.1}],
    'tar': [{'loss': 'tar_feature', 'weight': 3.0}, {'loss': 'tar_head'}],
}
TEACHERS = ('weak', 'transformer', 'strong')
MAP_LOSSES = ('masked_mse', 'mgd', 'pkd', 'cwd', 'fgd')


@dataclass(frozen=True)
class Stage:
    """One stage of a chain.

    Attributes:
        teacher: whose cache; None: no teacher.
        other: a second teacher in the same stage.
        fade: whether the weight moves from the first teacher to the other during the stage.
        epochs: its length.
        loss: one of LOSSES.
        weight: factor on the weights of LOSSES.
        codec: of the cache; with the error after a hyphen.
        lr: factor on the peak learning rate.
        warmup: share of the stage until the peak; None: 0.3.
        decay: whether the loss falls to 0 during the stage.
        inherit: whether the student starts from the teacher's neck and head.
        adapter: whether masked_mse has a 1x1 adapter although the channels agree.
        weight_decay: of the optimizer; None: 0.5.
        student: its config in configs/demo.
    """

    teacher: str | None = None
    epochs: int = FULL
    loss: str = 'masked_mse'
    weight: float = 1.0
    codec: str = 'lean-0.03'
    lr: float = 1.0
    warmup: float | None = None
    decay: bool = False
    inherit: bool = False
    adapter: bool = False
    weight_decay: float | None = None
    student: str = 'student'
    other: str | None = None
    fade: bool = False

    @property
    def name(self) -> str:
        """What is not the default, joined by hyphens: `strong60-pkd`."""
        teachers = '~'.join(filter(None, (self.teacher or 'alone', self.other)))
        parts = [f'{teachers}{self.epochs}']
        parts += [self.loss] if self.loss != 'masked_mse' else []
        parts += [f'w{self.weight:g}'] if self.weight != 1 else []
        parts += [self.codec] if self.codec != 'lean-0.03' else []
        parts += [f'lr{self.lr:g}'] if self.lr != 1 else []
        parts += [f'warmup{self.warmup:g}'] if self.warmup is not None else []
        parts += [f'wd{self.weight_decay:g}'] if self.weight_decay is not None else []
        parts += [key for key in ('decay', 'inherit', 'adapter', 'fade') if getattr(self, key)]
        parts += [self.student] if self.student != 'student' else []
        return '-'.join(parts)


Chain = tuple[Stage, ...]


def chain_name(chain: Chain) -> str:
    """The stages' names joined by `+`; a chain is known by it in results.jsonl."""
    return '+'.join(stage.name for stage in chain)


@dataclass(frozen=True)
class Question:
    """A table: rows of equal conditions, each compared with the first.

    Attributes:
        title: above the table.
        rows: what the first column says -> what is trained.
        num_seeds: 0, 1, ...
    """

    title: str
    rows: Mapping[str, Chain]
    num_seeds: int = 5


def _of(*names: str, epochs: int = FULL) -> Chain:
    return tuple(Stage(None if name == 'alone' else name, epochs) for name in names)


QUESTIONS: Mapping[str, Question] = {
    'weight_decay': Question(
        f'Weight decay of the student alone, {HALF} epochs',
        {
            '0.5': _of('alone', epochs=HALF),
            **{f'{one:g}': (Stage(None, HALF, weight_decay=one),) for one in (1e-4, 0.05, 0.2, 1.0)},
        },
    ),
    'convergence': Question(
        'The student alone, by epochs',
        {f'{epochs} epochs': _of('alone', epochs=epochs) for epochs in (FULL, HALF, 2 * FULL, 4 * FULL)},
    ),
    'direct': Question(
        f'One teacher, {FULL} epochs',
        {'alone': _of('alone'), **{name: _of(name) for name in ('strong', 'transformer', 'weak')}},
    ),
    'direct_half': Question(
        f'One teacher, {HALF} epochs',
        {name: _of(name, epochs=HALF) for name in ('alone', 'strong', 'transformer', 'weak')},
    ),
    'full_stages': Question(
        f'{2 * FULL} epochs: one stage, or two full ones of {FULL}',
        {
            'strong, one stage': _of('strong', epochs=2 * FULL),
            'alone, one stage': _of('alone', epochs=2 * FULL),
            'weak, strong': _of('weak', 'strong'),
            'strong, strong': _of('strong', 'strong'),
            'transformer, strong': _of('transformer', 'strong'),
            'strong, weak': _of('strong', 'weak'),
            'strong, transformer': _of('strong', 'transformer'),
            'weak, transformer': _of('weak', 'transformer'),
            'transformer, one stage': _of('transformer', epochs=2 * FULL),
            'alone, strong': _of('alone', 'strong'),
        },
    ),
    'short_stages': Question(
        f'{FULL} epochs: one stage, or two of {HALF}',
        {
            'strong, one stage': _of('strong'),
            **{f'{first}, strong': _of(first, 'strong', epochs=HALF) for first in ('weak', 'strong', 'transformer')},
        },
    ),
    'together': Question(
        f'Two teachers in one stage, {FULL} epochs',
        {
            'strong alone': _of('strong'),
            f'two stages of {HALF}: weak, strong': _of('weak', 'strong', epochs=HALF),
            'from weak to strong': (Stage('weak', other='strong', fade=True),),
            'weak and strong, half the weight each': (Stage('weak', other='strong', weight=0.5),),
            'from transformer to strong': (Stage('transformer', other='strong', fade=True),),
            'transformer and strong, half the weight each': (Stage('transformer', other='strong', weight=0.5),),
        },
    ),
    'demo': Question(
        f'The demo: {HALF} epochs, one stage or two',
        {
            'alone': _of('alone', epochs=HALF),
            'strong, one stage': _of('strong', epochs=HALF),
            'weak, strong': _of('weak', 'strong', epochs=HALF // 2),
        },
    ),
    'second_stage': Question(
        f'Weak, then strong, {2 * FULL} epochs: how the second stage is run',
        {
            'as the first': _of('weak', 'strong'),
            'peak rate x 0.3': (Stage('weak'), Stage('strong', lr=0.3)),
            'peak rate x 0.1': (Stage('weak'), Stage('strong', lr=0.1)),
            'warm-up 5%': (Stage('weak'), Stage('strong', warmup=0.05)),
            'decaying loss': (Stage('weak'), Stage('strong', decay=True)),
            'new adapters in each stage': (Stage('weak', adapter=True), Stage('strong', adapter=True)),
            f'{HALF} + {3 * HALF} epochs': (Stage('weak', HALF), Stage('strong', 3 * HALF)),
        },
    ),
    'low_rate': Question(
        f'Second stage at 0.3 of the peak rate, {2 * FULL} epochs',
        {
            'strong, one stage': _of('strong', epochs=2 * FULL),
            'strong, one stage at 0.3 of the peak rate': (Stage('strong', 2 * FULL, lr=0.3),),
            **{f'{first}, strong': (Stage(first), Stage('strong', lr=0.3)) for first in TEACHERS},
        },
    ),
    'transformer_last': Question(
        f'The transformer last, {2 * FULL} epochs',
        {
            'transformer, one stage': _of('transformer', epochs=2 * FULL),
            'transformer, one stage at 0.3 of the peak rate': (Stage('transformer', 2 * FULL, lr=0.3),),
            **{f'{first}, transformer': _of(first, 'transformer') for first in TEACHERS},
            **{
                f'{first}, transformer at 0.3 of the peak rate': (Stage(first), Stage('transformer', lr=0.3))
                for first in TEACHERS
            },
        },
    ),
    'gentle_transformer': Question(
        f'The transformer last, second stage at 0.3 of the peak rate, {2 * FULL} epochs',
        {
            f'{first}, transformer': (Stage(first), Stage('transformer', lr=0.3))
            for first in ('transformer', 'weak', 'strong')
        }
        | {'transformer, one stage at the same rate': (Stage('transformer', 2 * FULL, lr=0.3),)},
    ),
    'inheritance': Question(
        f'Neck and head of the teacher as a start, {2 * FULL} epochs',
        {
            'strong, one stage': _of('strong', epochs=2 * FULL),
            'strong, one stage, inherited': (Stage('strong', 2 * FULL, inherit=True),),
            'weak, strong': _of('weak', 'strong'),
            'weak, strong, inherited from weak': (Stage('weak', inherit=True), Stage('strong')),
        },
    ),
    'losses': Question(
        f'Losses, directly from strong, {HALF} epochs',
        {
            'alone': _of('alone', epochs=HALF),
            **{loss: (Stage('strong', HALF, loss=loss),) for loss in (*MAP_LOSSES, 'fgd_means')},
        },
    ),
    'two_stage_convergence': Question(
        'Faster R-CNN alone, by epochs',
        {f'{epochs} epochs': (Stage(None, epochs, student='faster_student'),) for epochs in (HALF, 2 * FULL)},
    ),
    **{
        name: Question(
            f'Faster R-CNN from its strong teacher, {epochs} epochs',
            {
                'alone': (Stage(None, epochs, student='faster_student'),),
                **{
                    loss: (Stage('faster_strong', epochs, loss=loss, student='faster_student'),)
                    for loss in ('masked_mse', 'tar_feature', 'tar_head', 'tar_light_boxes', 'tar_classes', 'tar')
                },
            },
        )
        for name, epochs in (('two_stage', 2 * FULL), ('two_stage_short', HALF))
    },
    'small_student': Question(
        f'A student with half the channels, {FULL} epochs: one stage, or two of {HALF}',
        {
            'strong, one stage': (Stage('strong', student='small_student'),),
            'alone': (Stage(student='small_student'),),
            'weak, one stage': (Stage('weak', student='small_student'),),
            **{
                f'{first}, strong': tuple(Stage(one, HALF, student='small_student') for one in (first, 'strong'))
                for first in ('weak', 'strong')
            },
        },
    ),
    'pkd_stages': Question(
        f'`pkd`, {2 * FULL} epochs',
        {
            'strong, one stage': (Stage('strong', 2 * FULL, loss='pkd'),),
            'weak, strong': (Stage('weak', loss='pkd'), Stage('strong', loss='pkd')),
        },
    ),
    **{
        f'codecs_{loss}': Question(
            f'Codecs, `{loss}` directly from strong, {HALF} epochs',
            {
                codec: (Stage('strong', HALF, loss=loss, codec=codec),)
                for codec in ('lean-0.03', 'int8', 'lean-0.1', 'lean-0.3')
            },
        )
        for loss in ('masked_mse', 'mgd', 'pkd')
    },
    **{
        f'weight_{loss}': Question(
            f'Weight of `{loss}`, directly from strong, {HALF} epochs',
            {
                f'{LOSSES[loss][0]["weight"] * factor:g}': (Stage('strong', HALF, loss=loss, weight=factor),)
                for factor in ((1.0, 0.3, 3.0, 10.0) if loss in ('cwd', 'fgd') else (1.0, 0.3, 3.0))
            },
        )
        for loss in MAP_LOSSES
    },
}
