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

from collections.abc import Sequence

import google_crc32c
import numpy as np
import torch

from mtpd.cache.format.arrays import RoisRecord
from mtpd.heads.rois import ImageRois

TABLES = ('image_id', 'num_rois', 'crc32c')
VALUES = ('boxes', 'probabilities', 'labels', 'deltas')


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
    """What `encode_row` encoded, in the order of `VALUES`, each row of its right length; raises as `require_rois`."""
    if not 0 <= num_rois <= record.num_rois:
        raise ValueError(f'{num_rois} RoIs in {record.num_rois} places')
    boxes, deltas = (np.frombuffer(rows[number], '<f4').reshape(-1, 4) for number in (0, 3))
    probabilities = np.frombuffer(rows[1], '<f2').reshape(-1, record.num_classes + 1).astype(np.float32)
    labels = np.frombuffer(rows[2], '<i4').astype(np.int64)
    found = ImageRois(*(torch.tensor(one[:num_rois]) for one in (boxes, probabilities, labels, deltas)))
    require_rois(found, num_classes=record.num_classes)
    return found


def require_rois(rois: ImageRois, *, num_classes: int) -> None:
    """Checks the values of RoIs; ValueError states what is wrong."""
    if not all(bool(one.isfinite().all()) for one in rois):
        raise ValueError('values that are not finite')
    if not bool(((rois.labels >= 0) & (rois.labels < num_classes)).all()):
        raise ValueError(f'labels outside its {num_classes} classes')
    if not bool(((rois.probabilities >= 0) & (rois.probabilities <= 1)).all()):
        raise ValueError('probabilities outside 0 to 1')
    if not bool((rois.boxes[:, 2:] >= rois.boxes[:, :2]).all()):
        raise ValueError('boxes with swapped corners')
