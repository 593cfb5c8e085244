"""What a stage file may say about images: where they are, how they are batched, resized and padded."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, NonNegativeInt, PositiveInt, Tag

from mtpd.options import Options, Share, UserPath


class FilesSettings(Options):
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
    """Whether the aspect ratio is kept."""
    pad_divisor: PositiveInt = 32
    """The padded sides are multiples of this many px."""
    pad_size: Edges | None = None
    """Height and width in px that the padded input has at least."""


class PhotometricSettings(Options):
    """Random changes of colours; the defaults are those of SSD. A teacher sees the image without them."""

    brightness: Share = 0.125
    """The factor of brightness is drawn from 1 - this to 1 + this."""
    contrast: Share = 0.5
    """The factor of contrast is drawn from 1 - this to 1 + this."""
    saturation: Share = 0.5
    """The factor of saturation is drawn from 1 - this to 1 + this."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """The shift of hue is drawn from -this to this; 0.5 is the opposite colour."""
    probability: Share = 0.5
    """Probability of each of the four, by itself."""


class DataSettings(Options):
    """Images and annotations."""

    coco: UserPath = Path('data/coco')
    """Folder laid out as COCO is: `train2017/`, `annotations/instances_train2017.json`, and so on."""
    train: Split = 'train2017'
    """Training images: a split below `coco`, or {images: FOLDER, annotations: FILE}."""
    val: Split | None = 'val2017'
    """Images to evaluate on, in the same forms; null: no evaluation."""
    batch_size: PositiveInt = 16
    """Images per iteration, of all processes together, so that a recipe does not depend on their number."""
    workers: NonNegativeInt = 4
    """Processes that read images; 0: the training process itself."""
    flip: Share = 0.5
    """Probability of mirroring a training image."""
    photometric: PhotometricSettings | None = None
    """Random changes of a training image's colours, for the student alone; null: none."""
    shuffle: Literal['full', 'shards'] = 'full'
    """`full`: all images are shuffled; `shards`: those of 8 shards of the cache at a time, where reading takes long."""
    geometry: GeometrySettings | None = None
    """Resize and padding of a stage without a cache; null: those of the student's config, or of its teacher."""
