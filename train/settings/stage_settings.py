"""Settings of a stage file, with defaults: frozen values that `stage_file` reads and that the code uses as they are.

Paths are relative to the current directory, not to the stage file; `~` is the home directory.
The text under a field is its description for users. Types are strict: neither '12' nor true is accepted as a number.
"""

import math
import re
from pathlib import Path, PurePosixPath
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

from mtpd.losses import MapLoss
from mtpd.losses.options import Options, Share
from mtpd.losses.tar_head import TarHeadOptions
from mtpd.system.files import is_url


def _local(path: Path) -> Path:
    if is_url(path):
        raise ValueError(f'{path} is a URL; give a path on this machine')
    return path.expanduser()


UserPath = Annotated[Path, AfterValidator(_local)]


def cache_name(place: object) -> str:
    """What losses call one of several caches: the last folder of its path or URL."""
    return PurePosixPath(str(place)).name


def _check_names(caches: tuple[Any, ...]) -> tuple[Any, ...]:
    names = list(map(cache_name, caches))
    if not all(re.fullmatch(r'[\w.-]*\w[\w.-]*', name) for name in names):
        raise ValueError(
            'losses choose a cache by the name of its folder, of letters, digits, _, - and dots, got '
            f'{", ".join(names)}; rename it'
        )
    # In the names of losses a dot becomes an underscore.
    if len({name.replace('.', '_') for name in names}) < len(names):
        raise ValueError(f'two folders have one name, by which losses choose a cache: {", ".join(names)}; rename one')
    return caches


# A URL is no path: `Path` would make one slash of two.
Url = Annotated[str, Field(pattern=r'^[a-z0-9]+://.'), AfterValidator(lambda url: url.rstrip('/'))]
CachePlace = Annotated[Url | UserPath, Field(union_mode='left_to_right')]
CachePlaces = Annotated[tuple[CachePlace, ...], Field(min_length=2), AfterValidator(_check_names)]
# Tags instead of trying both, so that an error describes the form that was used.
Caches = Annotated[
    Annotated[CachePlace, Tag('cache')] | Annotated[CachePlaces, Tag('caches')],
    Discriminator(lambda value: 'caches' if isinstance(value, list | tuple) else 'cache'),
]
# Every loss that a stage may name.
DistillOptions = Annotated[MapLoss | TarHeadOptions, Field(discriminator='loss')]


class InitSettings(Options):
    """Initial weights of the student."""

    checkpoint: UserPath | None = None
    """Weights of the whole student; null: the student of the previous stage, or a new student in the first stage."""
    fine_tune: Annotated[str, Field(min_length=1)] | None = None
    """Zoo name or file: the same network trained on other classes. Only the class layers are initialised again."""
    inherit: tuple[Literal['neck', 'head'], ...] = ()
    """Parts copied from the teacher where shapes match; a single head gets the first stage of a cascade."""
    backbone: str = 'pretrained'
    """Backbone of a new student: `pretrained` (the ImageNet weights its config names), `none` (random) or a file."""

    @field_validator('fine_tune')
    @classmethod
    def _check_fine_tune(cls, fine_tune: str | None, info: ValidationInfo) -> str | None:
        if fine_tune is not None and info.data.get('checkpoint') is not None:
            raise ValueError('cannot be combined with `checkpoint`, which is set too; remove one of them')
        return fine_tune


class FilesSettings(Options):
    """A set of images in another layout than COCO's."""

    images: UserPath
    """Image folder; `file_name` in the annotations is relative to it."""
    annotations: UserPath
    """Annotations in COCO's JSON format."""


# Tags instead of trying both, so that an error describes the form that was used.
Split = Annotated[
    Annotated[str, Tag('split')] | Annotated[FilesSettings, Tag('files')],
    Discriminator(lambda value: 'files' if isinstance(value, dict | FilesSettings) else 'split'),
]


Edges = tuple[PositiveInt, PositiveInt]


def _read_scale(value: Any) -> Any:
    """Reads `1333x800` and [1333, 800] as (1333, 800); what is neither is left to the check of the type."""
    if isinstance(value, str):
        edges = value.split('x')
        return tuple(int(edge) for edge in edges) if all(edge.isdecimal() for edge in edges) else value
    return tuple(value) if isinstance(value, list) else value


class GeometrySettings(Options):
    """Resize and padding of the network input, as in mmdet's `Resize` and `Pad`."""

    scale: Annotated[Edges, BeforeValidator(_read_scale, json_schema_input_type=str | Edges)] = (1333, 800)
    """Edges in px that the image must fit, as 1333x800 or [1333, 800]; without keep_ratio its width and height."""
    keep_ratio: bool = True
    """Keep the aspect ratio."""
    pad_divisor: PositiveInt = 32
    """Pad both sides to a multiple of this, px."""
    pad_size: Edges | None = None
    """Minimum height and width of the padded input, px."""


class PhotometricSettings(Options):
    """Colour jitter with the defaults of SSD. The teacher sees the unchanged image."""

    brightness: Share = 0.125
    """Brightness factor, drawn from [1 - value, 1 + value]."""
    contrast: Share = 0.5
    """Contrast factor, drawn from [1 - value, 1 + value]."""
    saturation: Share = 0.5
    """Saturation factor, drawn from [1 - value, 1 + value]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Hue shift, drawn from [-value, value]; 0.5 is the opposite colour."""
    probability: Share = 0.5
    """Probability of each of the four changes, drawn independently."""


class DataSettings(Options):
    """Images and annotations."""

    coco: UserPath = Path('data/coco')
    """Folder in COCO's layout: `train2017/`, `annotations/instances_train2017.json`, and so on."""
    train: Split = 'train2017'
    """Training images: a split below `coco`, or {images: FOLDER, annotations: FILE}."""
    val: Split | None = 'val2017'
    """Images to evaluate on, in the same forms; null: no evaluation."""
    batch_size: PositiveInt = 16
    """Global batch size (all processes together)."""
    workers: NonNegativeInt = 4
    """Processes that read images; 0: read in the training process."""
    flip: Share = 0.5
    """Probability of a horizontal flip of a training image."""
    photometric: PhotometricSettings | None = None
    """Colour jitter of training images, for the student only; null: none."""
    shuffle: Literal['full', 'shards'] = 'full'
    """`full`: shuffle all images; `shards`: within 8 shards of the cache at a time. Batches are of similar sizes."""
    read_threads: PositiveInt = 8
    """Threads that read the cache, one image each at a time. Increase it for a slow network file system."""
    read_ahead: PositiveInt = 32
    """Images that are read ahead from the cache, rounded up to whole batches; fewer if these exceed 1 GB."""
    mirror: UserPath | None = None
    """Folder in which files of a `cache` by URL are kept, up to `mirror_gb`; null: read by byte ranges."""
    mirror_gb: PositiveFloat = 200.0
    """Maximum size of the mirror, GB; what was used least recently is deleted from it."""
    geometry: GeometrySettings | None = None
    """Resize and padding of a stage without a cache; null: from the student's config or from `teacher`."""


class OptimSettings(Options):
    """Optimizer, learning rate and length of the training."""

    type: Literal['sgd', 'adamw'] = 'sgd'
    """Optimizer."""
    lr: PositiveFloat
    """Peak learning rate. Scale it linearly with `data.batch_size`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD, or beta1 of AdamW."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay."""
    backbone_lr: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of the backbone as a fraction of `lr`; recipes of DETR and its followers have 0.1."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each block of the backbone to the one before; transformers: 0.65 to 0.8."""
    norm_decay: bool = True
    """Apply the weight decay to normalisation layers; false in recipes of YOLOX, RTMDet and transformers."""
    bias_decay: bool = True
    """Apply the weight decay to the biases of other layers; false in recipes of YOLOX and RTMDet."""
    epochs: PositiveInt
    """Passes over the training images."""
    schedule: Literal['multistep', 'cosine', 'linear', 'onecycle'] = 'multistep'
    """`multistep`: divide lr by 10 at each milestone; `cosine`, `linear`: decay to `min_lr`; `onecycle`: up, down."""
    milestones: tuple[PositiveInt, ...] = ()
    """Epochs after which `multistep` divides the learning rate by 10, in increasing order."""
    min_lr: NonNegativeFloat = 0.0
    """Final learning rate of `cosine` and `linear`."""
    warmup_iters: NonNegativeInt | None = None
    """Optimizer steps of the warm-up; null: 500, at most 10% of the training, or 30% of the training with onecycle."""
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Initial learning rate of the warm-up as a fraction of `lr`; null: 0.001, or 0.04 with onecycle."""
    grad_clip: PositiveFloat | None = None
    """Maximum L2 norm of the gradient; null: no clipping."""
    accumulate: PositiveInt = 1
    """Gradient accumulation: iterations per optimizer step."""
    precision: Literal['fp32', 'fp16', 'bf16'] = 'fp32'
    """Floating-point format of the forward pass; fp16 scales the loss."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """EMA decay of the weights, such as 0.9998; the average is evaluated, saved and passed on. null: no EMA."""
    channels_last: bool = False
    """Use channels-last (NHWC) memory format; faster on GPUs in half precision."""
    activation_checkpointing: bool = False
    """Activation checkpointing of the backbone: slower, less memory, same gradients."""

    @field_validator('milestones')
    @classmethod
    def _check_milestones(cls, milestones: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)):
            raise ValueError(f'must increase, got {list(milestones)}')
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
    """Evaluation of the student on `data.val`."""

    every: PositiveInt = 1
    """Evaluate every N epochs; the last epoch is always evaluated."""
    backend: Literal['pycocotools', 'faster'] = 'pycocotools'
    """AP implementation; `faster` is faster-coco-eval, same results: pip install faster-coco-eval."""


class SaveSettings(Options):
    """Additional checkpoints. These settings may change when a run is resumed."""

    every_minutes: PositiveFloat | None = 15.0
    """Minutes between saves of the training state, in addition to the end of each epoch; null: epoch ends only."""
    keep: NonNegativeInt = 2
    """Keep the students of the last N epochs as `epoch_N.pth`; the best by box AP is `best.pth`."""


class StageSettings(Options):
    """One stage: a student trained for some epochs, learning from one teacher or from none."""

    student: Annotated[str, Field(min_length=1)]
    """Name of an mmdet model or path to its config, `torchvision:NAME`, `hf:REPO_OR_FOLDER` or `file.py:callable`."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Overrides of the student: of `model` in an mmdet config by (dotted) key, else what its family takes."""
    cache: Caches | None = None
    """Cache of the teacher's features, or a list of caches of several teachers; null: none, see `teacher`."""
    teacher: Annotated[str, Field(min_length=1)] | None = None
    """Teacher in the training loop instead of a cache, by the names that `mtpd-extract --teacher` takes."""
    checkpoint: UserPath | None = None
    """Weights of `teacher`; null: those of the zoo."""
    trust_checkpoint: bool = False
    """Load a `checkpoint` that holds more than tensors and plain values; this can run code from the file."""
    hook: Literal['auto', 'neck', 'before-norm'] = 'auto'
    """Where the maps of `teacher` are taken, as `mtpd-extract --hook`; a cache records its own hook point."""
    init: InitSettings = InitSettings()
    """Initial weights of the student."""
    distill: tuple[DistillOptions, ...] = ()
    """Distillation losses, added to the student's own."""
    data: DataSettings = DataSettings()
    """Images and annotations."""
    optim: OptimSettings
    """Optimizer, learning rate and length of the training."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Evaluation of the student."""
    save: SaveSettings = SaveSettings()
    """Additional checkpoints."""
    seed: NonNegativeInt = 0
    """Random seed."""

    @field_validator('teacher', 'checkpoint', 'trust_checkpoint', 'hook', 'init', 'distill', 'data')
    @classmethod
    def _check_source(cls, value: Any, info: ValidationInfo) -> Any:
        """Checks each field against `cache` and `teacher`, so that every problem is found and has its line."""
        # An invalid value is missing from `info.data`, and contradicts nothing.
        cache, teacher = info.data.get('cache', ''), info.data.get('teacher', '')
        match info.field_name:
            case 'teacher' if value is not None and cache:
                problem = 'cannot be combined with `cache`, which is set too; remove one of them'
            case 'checkpoint' if value is not None and teacher is None:
                problem = "belongs to `teacher`, which is not set; the student's checkpoint is init.checkpoint"
            case 'trust_checkpoint' if value and teacher is None:
                problem = 'applies to the checkpoint of `teacher`, which is not set'
            case 'trust_checkpoint' if value and '.py:' in teacher:
                problem = f'{teacher} loads its own checkpoint; remove it'
            case 'hook' if value != 'auto' and teacher is None:
                problem = 'applies to `teacher`, which is not set; a cache records its own hook point'
            case 'init' if value.inherit and cache is None and teacher is None:
                problem = 'inherit copies weights of a teacher, but neither `cache` nor `teacher` is set'
            case 'distill' if value and cache is None and teacher is None:
                problem = "needs a teacher's maps, but neither `cache` nor `teacher` is set"
            case 'data' if value.geometry is not None and cache:
                problem = 'the cache defines the geometry; remove `geometry`'
            case 'data' if value.shuffle == 'shards' and cache is None:
                problem = 'shuffle: shards needs a cache, but `cache` is not set'
            case _:
                return value
        raise ValueError(problem)

    @model_validator(mode='after')
    def _check_teacher_is_used(self) -> Self:
        # An explicit `distill: []` trains the baseline of a distilled run, at the teacher's geometry.
        key = 'teacher' if self.cache is None else 'cache'
        is_set = self.cache is not None or self.teacher is not None
        if is_set and not self.init.inherit and 'distill' not in self.model_fields_set:
            raise ValueError(f'`{key}` is set but not used; add `distill`, or write `distill: []`')
        return self
