"""What a stage file may say, with defaults. Values only: `stage_file` reads them, other modules build from them.

Paths are relative to the current directory, not to the stage file; `~` is the home directory.
The text under a field describes it to users. Types are strict: '12' is no number, true is none either.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mtpd_train.loss_settings import DistillSettings
from mtpd_train.section import Section

UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Share = Annotated[float, Field(ge=0, le=1)]


class InitSettings(Section):
    """Where the student's first weights come from."""

    checkpoint: UserPath | None = None
    """Weights of the whole student; null: those of the stage before, or for the first stage a fresh student."""
    inherit: tuple[Literal['neck', 'head'], ...] = ()
    """Parts taken over from the teacher, where shapes agree; of a cascade the first stage, for a single head."""
    backbone: str = 'pretrained'
    """Backbone of a fresh student: `pretrained` (the ImageNet weights its config names), `none` (random) or a file."""


class FilesSettings(Section):
    """A set of images that does not lie as COCO does."""

    images: UserPath
    """Folder that the annotations' `file_name` starts from."""
    annotations: UserPath
    """Annotations in COCO's JSON format."""


# Tags instead of trying both, so that an error speaks of the form that was used.
Split = Annotated[
    Annotated[str, Tag('split')] | Annotated[FilesSettings, Tag('files')],
    Discriminator(lambda value: 'files' if isinstance(value, dict | FilesSettings) else 'split'),
]


def _read_scale(value: Any) -> Any:
    """Reads `1333x800` and [1333, 800] as (1333, 800); what is neither is left to the check of the type."""
    if isinstance(value, str):
        edges = value.split('x')
        return tuple(int(edge) for edge in edges) if all(edge.isdecimal() for edge in edges) else value
    return tuple(value) if isinstance(value, list) else value


class GeometrySettings(Section):
    """Resize and padding of the network input, as in mmdet's `Resize` and `Pad`."""

    scale: Annotated[tuple[PositiveInt, PositiveInt], BeforeValidator(_read_scale)] = (1333, 800)
    """Edges in px that the image must fit, as 1333x800 or [1333, 800]; without keep_ratio its width and height."""
    keep_ratio: bool = True
    """Whether the aspect ratio is kept."""
    pad_divisor: PositiveInt = 32
    """The padded sides are multiples of this many px."""
    pad_size: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width in px that the padded input has at least."""


class DataSettings(Section):
    """Images and annotations."""

    coco: UserPath = Path('data/coco')
    """Folder laid out as COCO is: `train2017/`, `annotations/instances_train2017.json`, and so on."""
    train: Split = 'train2017'
    """Training images: a split below `coco`, or {images: FOLDER, annotations: FILE}."""
    val: Split | None = 'val2017'
    """Images to evaluate on, in the same forms; null: no evaluation."""
    batch_size: PositiveInt = 16
    """Images per iteration."""
    workers: NonNegativeInt = 4
    """Processes that read images; 0: the training process itself."""
    flip: Share = 0.5
    """Probability of mirroring a training image."""
    geometry: GeometrySettings | None = None
    """Resize and padding of a stage without a cache; null: those of the student's config, or of the cache."""


class OptimSettings(Section):
    """Optimizer, learning rate and length of the training."""

    type: Literal['sgd', 'adamw'] = 'sgd'
    """Optimizer."""
    lr: PositiveFloat
    """Highest learning rate."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD, first beta of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay."""
    epochs: PositiveInt
    """Passes over the training images."""
    schedule: Literal['multistep', 'cosine', 'onecycle'] = 'multistep'
    """Learning rate after the warm-up: a tenth after each milestone, or falling along a cosine to about 0."""
    milestones: tuple[PositiveInt, ...] = ()
    """Epochs after which `multistep` divides the learning rate by 10."""
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


class EvaluateSettings(Section):
    """When the student is evaluated on `data.val`."""

    every: PositiveInt = 1
    """Epochs from one evaluation to the next; the last epoch is always evaluated."""


class StageSettings(Section):
    """One stage: a student trained for some epochs, learning from one teacher's cache or from none."""

    student: Annotated[str, Field(min_length=1)]
    """Name of an mmdet model, or path to an mmdet config."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Changes to the `model` of the student's config, by (dotted) key."""
    cache: UserPath | None = None
    """Teacher's cache; null: plain training."""
    init: InitSettings = InitSettings()
    """Where the student's first weights come from."""
    distill: tuple[DistillSettings, ...] = ()
    """Distillation losses, added to the student's own."""
    data: DataSettings = DataSettings()
    """Images and annotations."""
    optim: OptimSettings
    """Optimizer, learning rate and length of the training."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """When the student is evaluated."""
    seed: NonNegativeInt = 0
    """Seed of everything random."""

    # What contradicts `cache` is checked field by field, so that each problem has its line and all are found at once.
    # `cache` is missing from `info.data` when it is itself wrong.

    @field_validator('init')
    @classmethod
    def _check_init(cls, init: InitSettings, info: ValidationInfo) -> InitSettings:
        if init.inherit and info.data.get('cache', '') is None:
            raise ValueError('inherit copies weights from a cache, but `cache` is not set')
        return init

    @field_validator('distill')
    @classmethod
    def _check_distill(cls, distill: tuple[DistillSettings, ...], info: ValidationInfo) -> tuple[DistillSettings, ...]:
        if distill and info.data.get('cache', '') is None:
            raise ValueError("needs a teacher's maps, but `cache` is not set")
        return distill

    @field_validator('data')
    @classmethod
    def _check_data(cls, data: DataSettings, info: ValidationInfo) -> DataSettings:
        if data.geometry is not None and info.data.get('cache') is not None:
            raise ValueError('geometry comes from the cache; remove `geometry`')
        return data

    @model_validator(mode='after')
    def _check_cache_is_used(self) -> Self:
        # An explicit `distill: []` is how one trains the baseline of a distilled run, at the cache's geometry.
        if self.cache is not None and not self.init.inherit and 'distill' not in self.model_fields_set:
            raise ValueError('`cache` is set but nothing reads it; add `distill`, or write `distill: []`')
        return self
