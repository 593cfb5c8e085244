"""The arrays of a two-stage teacher's proposals, below `heads/`; cut at the same rows as the shards of a bucket.

    heads/<bucket>/image_id        (N,) int64               which image a row is
    heads/<bucket>/num_rois        (N,) int32               how many of its R places are filled, the first ones
    heads/<bucket>/crc32c          (N,) uint32              checksum of the rows of the four arrays below, together
    heads/<bucket>/boxes           (N, R, 4) float32        absolute xyxy in px of the original image, best first
    heads/<bucket>/probabilities   (N, R, C + 1) float16    of the classes, the background last
    heads/<bucket>/labels          (N, R) int32             object class of the highest probability
    heads/<bucket>/deltas          (N, R, 4) float32        raw deltas dx, dy, dw, dh of that class

N rows, R places for RoIs of an image, C object classes. They belong to the plain view.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import google_crc32c
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from mtpd.cache.format.arrays import MAX_PLAIN_BYTES, ArraySpec
from mtpd.cache.format.plan import Bucket
from mtpd.heads.rois import ImageRois

HEADS = 'heads'
TABLES = ('image_id', 'num_rois', 'crc32c')
VALUES = ('boxes', 'probabilities', 'labels', 'deltas')
MAX_ROIS = 4096
MAX_PROBABILITIES = 2**23  # of an image: the 1,203 classes of LVIS for as many RoIs as there may be


class RoisRecord(BaseModel):
    """How many RoIs of an image a cache holds at most, and of how many object classes."""

    model_config = ConfigDict(extra='forbid', frozen=True, strict=True)

    num_rois: Annotated[int, Field(gt=0, le=MAX_ROIS)]
    num_classes: Annotated[int, Field(gt=0, le=2**14)]


def roi_specs(bucket: Bucket, rois: RoisRecord | None) -> list[ArraySpec]:
    """Every array of a bucket's RoIs, those of `TABLES` and of `VALUES`; none without a record."""
    if rois is None:
        return []
    rows, places = len(bucket.images), rois.num_rois
    columns: dict[str, tuple[tuple[int, ...], str]] = {
        'image_id': ((rows,), 'int64'),
        'num_rois': ((rows,), 'int32'),
        'crc32c': ((rows,), 'uint32'),
        'boxes': ((rows, places, 4), 'float32'),
        'probabilities': ((rows, places, rois.num_classes + 1), 'float16'),
        'labels': ((rows, places), 'int32'),
        'deltas': ((rows, places, 4), 'float32'),
    }
    return [
        ArraySpec(f'{HEADS}/{bucket.name}/{name}', shape, dtype, bucket.rows_per_shard)
        for name, (shape, dtype) in columns.items()
    ]


def row_bytes(spec: ArraySpec) -> int:
    """Bytes of one row of a plain array."""
    return math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize


def fits(bucket: Bucket, rois: RoisRecord) -> bool:
    """Whether every file is one that a reader takes."""
    return all(row_bytes(spec) * spec.rows_per_file <= MAX_PLAIN_BYTES for spec in roi_specs(bucket, rois))


def encode_row(rois: ImageRois, record: RoisRecord) -> dict[str, np.ndarray]:
    """The rows of the four `VALUES`, little-endian, zero beyond the RoIs there are."""
    shapes = {'boxes': (4,), 'probabilities': (record.num_classes + 1,), 'labels': (), 'deltas': (4,)}
    dtypes = {'boxes': '<f4', 'probabilities': '<f2', 'labels': '<i4', 'deltas': '<f4'}
    rows = {}
    for name in VALUES:
        values = getattr(rois, name).cpu().numpy()
        rows[name] = np.zeros((record.num_rois, *shapes[name]), dtype=dtypes[name])
        rows[name][: len(values)] = values
    return rows


def row_checksum(rows: Sequence[bytes]) -> int:
    """CRC-32C of the rows of an image in the four `VALUES`, one after another."""
    checksum = 0
    for row in rows:  # not joined: they may be large, and are not to be believed yet
        checksum = google_crc32c.extend(checksum, row)
    return int(checksum)


def decode_row(rows: Sequence[bytes], record: RoisRecord, *, num_rois: int) -> ImageRois:
    """What `encode_row` encoded, in the order of `VALUES`, each row of its right length.

    Raises:
        ValueError: the values are not those of RoIs; the message states what is wrong.
    """
    if not 0 <= num_rois <= record.num_rois:
        raise ValueError(f'{num_rois} RoIs in {record.num_rois} places')
    boxes, deltas = (np.frombuffer(rows[VALUES.index(name)], '<f4').reshape(-1, 4) for name in ('boxes', 'deltas'))
    probabilities = np.frombuffer(rows[1], '<f2').reshape(-1, record.num_classes + 1).astype(np.float32)
    labels = np.frombuffer(rows[2], '<i4').astype(np.int64)
    found = ImageRois(*(torch.tensor(one[:num_rois]) for one in (boxes, probabilities, labels, deltas)))
    require_rois(found, num_classes=record.num_classes)
    return found


def require_rois(rois: ImageRois, *, num_classes: int) -> None:
    """Checks the values of RoIs.

    Raises:
        ValueError: the message states what is wrong.
    """
    if not all(bool(one.isfinite().all()) for one in rois):
        raise ValueError('values that are not finite')
    if not bool(((rois.labels >= 0) & (rois.labels < num_classes)).all()):
        raise ValueError(f'labels outside its {num_classes} classes')
    if not bool(((rois.probabilities >= 0) & (rois.probabilities <= 1)).all()):
        raise ValueError('probabilities outside 0 to 1')
    if not bool((rois.boxes[:, 2:] >= rois.boxes[:, :2]).all()):
        raise ValueError('boxes with swapped corners')
