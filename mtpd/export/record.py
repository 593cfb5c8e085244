"""What an exported file says about itself: plain values, checked when they are read, of which nothing is executed."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtpd.detectors.exportable import Paste
from mtpd.detectors.preprocessing import Normalisation, Preprocessing
from mtpd.detectors.record import require_plain
from mtpd.errors import InputError
from mtpd.geometry import MAX_SIDE, Geometry, Size

# The key of the record among a file's metadata.
KEY = 'mtpd'
MAX_RECORD = 2**22  # characters
Precision = Literal['float32', 'half', 'int8']
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class ExportRecord(BaseModel):
    """The description in an exported file.

    Attributes:
        version: of this description.
        mtpd: the version that wrote the file.
        detector: name of the detector.
        checkpoint_sha256: hash of the file of its weights: the fingerprint of what a run trained.
        license: of the weights, as the user states it; None: not stated.
        classes: what the labels mean, in their order.
        geometry, normalisation: how images become inputs. The resize is the user's, the rest is in the graph; in a file
            with raw outputs all is the user's.
        size: height and width of the input, px; None: any.
        batch: images of a batch; None: any number.
        num_detections: rows of the outputs for each image.
        precision: of the weights.
        opset: of the ONNX operators; None: not ONNX.
        paste: how masks of boxes become those of images; None: there are none.
        raw: what boxes and scores are computed with from raw outputs; None: the outputs are boxes.
    """

    model_config = ConfigDict(extra='forbid', frozen=True)

    version: Literal[1] = 1
    mtpd: str
    detector: str
    checkpoint_sha256: str
    license: str | None = None
    classes: tuple[str, ...]
    geometry: Geometry
    normalisation: Normalisation
    size: tuple[Side, Side] | None = None
    batch: Annotated[int, Field(ge=1)] | None = None
    num_detections: Annotated[int, Field(ge=1, le=2**20)]
    precision: Precision = 'float32'
    opset: int | None = None
    paste: Paste | None = None
    raw: dict[str, Any] | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become inputs."""
        return Preprocessing(self.geometry, self.normalisation)

    def text(self) -> str:
        """As a file has it."""
        content = self.model_dump(mode='json') | {'geometry': self.geometry.to_dict()}
        return json.dumps({key: value for key, value in content.items() if value is not None})


def parse_record(text: str | None, *, name: str) -> ExportRecord:
    """The record of a file, checked. InputError for a file that `mtpd-export` did not write."""
    if text is None:
        raise InputError(f'{name}: has no description by mtpd; give a file that mtpd-export has written')
    if len(text) > MAX_RECORD:
        raise InputError(f'{name}: its description has {len(text)} characters, expected at most {MAX_RECORD}')
    try:
        record = ExportRecord.model_validate_json(text)
        require_plain(record.preprocessing, record.classes)
        return record
    except ValidationError as error:
        first = error.errors()[0]
        reason = f'{".".join(map(str, first["loc"])) or "its content"}: {first["msg"]}'
        raise InputError(f'{name}: its description cannot be read: {reason}; export it again') from None
    except InputError as error:
        raise InputError(f'{name}: its description cannot be read: {error}; export it again') from None


def input_geometry(geometry: Geometry, size: Size | None) -> Geometry:
    """The geometry of an export for inputs of one `size` (height, width) px, or of any.

    Images keep their ratio where they did, and then must fit: a square takes all.
    """
    # Inputs are bytes: a resize to fractions of them is rounded.
    plain = Geometry(**{**vars(geometry), 'float_pixels': False})
    if size is None:
        return plain
    height, width = size
    return Geometry(
        **{
            **vars(plain),
            'scale': (max(size), min(size)) if geometry.keep_ratio else (width, height),
            'pad_size': (height, width) if geometry.keep_ratio else None,
            'pad_square': False,
        }
    )
