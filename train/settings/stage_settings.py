"""What a stage file may say, with defaults. Values only: `stage_file` reads them, other modules build from them.

Paths are relative to the current directory, not to the stage file; `~` is the home directory.
The text under a field describes it to users. Types are strict: '12' is no number, true is none either.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mtpd.losses.cwd import CwdOptions
from mtpd.losses.masked_mse import MaskedMseOptions
from mtpd.losses.mgd import MgdOptions
from mtpd.losses.objects.fgd import FgdOptions
from mtpd.losses.objects.fine_grained import FineGrainedOptions
from mtpd.losses.objects.tar_feature import TarFeatureOptions
from mtpd.losses.pkd import PkdOptions
from mtpd.losses.responses.tar_head import TarHeadOptions
from mtpd.options import Options, UserPath
from mtpd_train.settings.data_settings import DataSettings

# Every loss that a stage may name.
DistillOptions = Annotated[
    MaskedMseOptions
    | MgdOptions
    | PkdOptions
    | CwdOptions
    | FineGrainedOptions
    | TarFeatureOptions
    | FgdOptions
    | TarHeadOptions,
    Field(discriminator='loss'),
]


class InitSettings(Options):
    """Where the student's first weights come from."""

    checkpoint: UserPath | None = None
    """Weights of the whole student; null: those of the stage before, or for the first stage a fresh student."""
    fine_tune: Annotated[str, Field(min_length=1)] | None = None
    """A zoo name or a file: this network trained on other classes. Only the class layers start anew."""
    inherit: tuple[Literal['neck', 'head'], ...] = ()
    """Parts taken over from the teacher, where shapes agree; of a cascade the first stage, for a single head."""
    backbone: str = 'pretrained'
    """Backbone of a fresh student: `pretrained` (the ImageNet weights its config names), `none` (random) or a file."""

    @field_validator('fine_tune')
    @classmethod
    def _check_fine_tune(cls, fine_tune: str | None, info: ValidationInfo) -> str | None:
        if fine_tune is not None and info.data.get('checkpoint') is not None:
            raise ValueError('a student starts from one network, and `checkpoint` is set too; remove one of them')
        return fine_tune


class OptimSettings(Options):
    """Optimizer, learning rate and length of the training."""

    type: Literal['sgd', 'adamw'] = 'sgd'
    """Optimizer."""
    lr: PositiveFloat
    """Highest learning rate; it goes with `data.batch_size`: for twice the images take twice the rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD, first beta of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay."""
    epochs: PositiveInt
    """Passes over the training images."""
    schedule: Literal['multistep', 'cosine', 'linear', 'onecycle'] = 'multistep'
    """`multistep`: lr falls to a tenth after each milestone; `cosine`, `linear`: to `min_lr`; `onecycle`: up, down."""
    milestones: tuple[PositiveInt, ...] = ()
    """Epochs after which `multistep` divides the learning rate by 10."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate that `cosine` and `linear` end at."""
    warmup_iters: NonNegativeInt | None = None
    """Optimizer steps of the warm-up; null: 500 but at most a tenth of the training, or 30% of it with onecycle."""
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of `lr` that the warm-up starts from; null: 0.001, or 0.04 with onecycle."""
    grad_clip: PositiveFloat | None = None
    """Greatest L2 norm of the gradient; null: no clipping."""
    accumulate: PositiveInt = 1
    """Iterations whose gradients make one optimizer step."""
    precision: Literal['fp32', 'fp16', 'bf16'] = 'fp32'
    """Floating-point format of the forward pass; fp16 scales the loss."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights (0.9998), which is evaluated, saved and passed on; null: no average."""
    channels_last: bool = False
    """Whether maps lie in memory pixel by pixel, which GPUs prefer in half precision."""
    activation_checkpointing: bool = False
    """Whether the backbone is computed again in the backward pass: slower, in less memory, with the same gradients."""

    @field_validator('milestones')
    @classmethod
    def _check_milestones(cls, milestones: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f'must rise, got {list(milestones)}')
        epochs = info.data.get('epochs')
        if milestones and epochs is not None and milestones[-1] >= epochs:
            raise ValueError(f'must come before the last of {epochs} epochs, got {milestones[-1]}')
        if milestones and info.data.get('schedule', 'multistep') != 'multistep':
            raise ValueError(f'belong to the multistep schedule, not to {info.data["schedule"]}')
        return milestones

    @field_validator('min_lr')
    @classmethod
    def _check_min_lr(cls, min_lr: float, info: ValidationInfo) -> float:
        schedule = info.data.get('schedule')
        if min_lr and schedule in ('multistep', 'onecycle'):
            raise ValueError(f'belongs to the cosine and linear schedules, not to {schedule}')
        if min_lr >= info.data.get('lr', math.inf):
            raise ValueError(f'must be less than lr, which is {info.data["lr"]:g}, got {min_lr:g}')
        return min_lr


class EvaluateSettings(Options):
    """When the student is evaluated on `data.val`."""

    every: PositiveInt = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""
    backend: Literal['pycocotools', 'faster'] = 'pycocotools'
    """What computes AP; `faster` is faster-coco-eval, with equal numbers: pip install "mtpd[faster]"."""


class SaveSettings(Options):
    """What is saved beside the last student. Everything here may change when a run goes on."""

    every_minutes: PositiveFloat | None = 15.0
    """Minutes between two savings of the training state, which every epoch ends with too; null: only there."""
    keep: NonNegativeInt = 2
    """Epochs whose students are kept, the last ones, as `epoch_N.pth`; the best by box AP is `best.pth`."""


class StageSettings(Options):
    """One stage: a student trained for some epochs, learning from one teacher or from none."""

    student: Annotated[str, Field(min_length=1)]
    """Name of an mmdet model, or path to an mmdet config."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Changes to the `model` of the student's config, by (dotted) key."""
    cache: UserPath | None = None
    """Teacher's cache; null: plain training, unless `teacher` is set."""
    teacher: Annotated[str, Field(min_length=1)] | None = None
    """In place of a cache, a teacher that runs in the loop: zoo name, alias, mmdet config or file.py:callable."""
    checkpoint: UserPath | None = None
    """Weights of `teacher`; null: those of the zoo."""
    trust_checkpoint: bool = False
    """Whether a `checkpoint` may hold more than tensors and plain values; reading such a file can run code."""
    hook: Literal['auto', 'neck', 'before-norm'] = 'auto'
    """Where the maps of `teacher` are taken, as by `mtpd-extract --hook`; a cache knows where its own were."""
    init: InitSettings = InitSettings()
    """Where the student's first weights come from."""
    distill: tuple[DistillOptions, ...] = ()
    """Distillation losses, added to the student's own."""
    data: DataSettings = DataSettings()
    """Images and annotations."""
    optim: OptimSettings
    """Optimizer, learning rate and length of the training."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """When the student is evaluated."""
    save: SaveSettings = SaveSettings()
    """What is saved beside the last student."""
    seed: NonNegativeInt = 0
    """Seed of everything random."""

    # What contradicts `cache` and `teacher` is checked field by field, so that each problem has its line and all are
    # found at once. They are missing from `info.data` when they are themselves wrong.

    @field_validator('teacher')
    @classmethod
    def _check_teacher(cls, teacher: str | None, info: ValidationInfo) -> str | None:
        if teacher is not None and info.data.get('cache') is not None:
            raise ValueError('a stage has one teacher, and `cache` is set too; remove one of them')
        return teacher

    @field_validator('checkpoint')
    @classmethod
    def _check_checkpoint(cls, checkpoint: Path | None, info: ValidationInfo) -> Path | None:
        if checkpoint is not None and info.data.get('teacher', '') is None:
            raise ValueError("is the teacher's, but `teacher` is not set; the student's is init.checkpoint")
        return checkpoint

    @field_validator('trust_checkpoint')
    @classmethod
    def _check_trust(cls, trust: bool, info: ValidationInfo) -> bool:
        teacher = info.data.get('teacher', '')
        if trust and teacher is None:
            raise ValueError("is for the teacher's checkpoint, but `teacher` is not set")
        if trust and '.py:' in teacher:
            raise ValueError(f'{teacher} reads its checkpoint itself; remove it')
        return trust

    @field_validator('hook')
    @classmethod
    def _check_hook(cls, hook: str, info: ValidationInfo) -> str:
        if hook != 'auto' and info.data.get('teacher', '') is None:
            raise ValueError('is for a `teacher`, which is not set; a cache knows where its maps were taken')
        return hook

    @field_validator('init')
    @classmethod
    def _check_init(cls, init: InitSettings, info: ValidationInfo) -> InitSettings:
        if init.inherit and _has_no_teacher(info):
            raise ValueError('inherit copies weights of a teacher, but neither `cache` nor `teacher` is set')
        return init

    @field_validator('distill')
    @classmethod
    def _check_distill(cls, distill: tuple[DistillOptions, ...], info: ValidationInfo) -> tuple[DistillOptions, ...]:
        if distill and _has_no_teacher(info):
            raise ValueError("needs a teacher's maps, but neither `cache` nor `teacher` is set")
        return distill

    @field_validator('data')
    @classmethod
    def _check_data(cls, data: DataSettings, info: ValidationInfo) -> DataSettings:
        if data.geometry is not None and info.data.get('cache') is not None:
            raise ValueError('geometry comes from the cache; remove `geometry`')
        if data.shuffle == 'shards' and info.data.get('cache', '') is None:
            raise ValueError('shuffle: shards goes by the shards of a cache, but `cache` is not set')
        return data

    @model_validator(mode='after')
    def _check_teacher_is_used(self) -> Self:
        # An explicit `distill: []` is how one trains the baseline of a distilled run, at the teacher's geometry.
        key = 'teacher' if self.cache is None else 'cache'
        is_set = self.cache is not None or self.teacher is not None
        if is_set and not self.init.inherit and 'distill' not in self.model_fields_set:
            raise ValueError(f'`{key}` is set but nothing reads it; add `distill`, or write `distill: []`')
        return self


def _has_no_teacher(info: ValidationInfo) -> bool:
    return info.data.get('cache', '') is None and info.data.get('teacher', '') is None
