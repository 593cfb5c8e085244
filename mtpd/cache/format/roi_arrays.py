"""The rows of a two-stage teacher's proposals in the arrays below `heads/`, as FORMAT.md describes them."""

from collections.abc import Mapping, Sequence

import google_crc32c
import numpy as np
import torch

from mtpd.cache.format.arrays import ArraySpec
from mtpd.heads.rois import ImageRois

ROI_TABLES = ('image_id', 'num_rois', 'crc32c')
ROI_VALUES = ('boxes', 'probabilities', 'labels', 'deltas')


def encode_rois(rois: ImageRois, specs: Mapping[str, ArraySpec]) -> dict[str, np.ndarray]:
    """The rows of the four `ROI_VALUES`, little-endian, zero beyond the RoIs there are."""
    rows = {}
    for name in ROI_VALUES:
        values = getattr(rois, name).cpu().numpy()
        rows[name] = np.zeros(specs[name].row_shape, dtype=specs[name].file_dtype)
        rows[name][: len(values)] = values
    return rows


def rois_checksum(rows: Sequence[bytes]) -> int:
    """CRC-32C of the rows of an image in the four `ROI_VALUES`, one after another."""
    checksum = 0
    for row in rows:  # not joined: they may be large, and are not to be believed yet
        checksum = google_crc32c.extend(checksum, row)
    return int(checksum)


def decode_rois(rows: Sequence[bytes], specs: Mapping[str, ArraySpec], *, num_rois: int) -> ImageRois:
    """What `encode_rois` made, in the order of `ROI_VALUES`, each row of its length; raises as `require_rois`."""
    (num_places,) = specs['labels'].row_shape
    if not 0 <= num_rois <= num_places:
        raise ValueError(f'{num_rois} RoIs in {num_places} places')
    values = {}
    for name, row in zip(ROI_VALUES, rows, strict=True):
        stored = np.frombuffer(row, specs[name].file_dtype).reshape(specs[name].row_shape)[:num_rois]
        values[name] = torch.tensor(stored.astype(np.int64 if name == 'labels' else np.float32))
    found = ImageRois(**values)
    require_rois(found)
    return found


def require_rois(rois: ImageRois) -> None:
    """Checks the values of RoIs; ValueError states what is wrong."""
    num_classes = rois.probabilities.shape[1] - 1
    if not all(bool(one.isfinite().all()) for one in rois):
        raise ValueError('values that are not finite')
    if not bool(((rois.labels >= 0) & (rois.labels < num_classes)).all()):
        raise ValueError(f'labels outside its {num_classes} classes')
    if not bool(((rois.probabilities >= 0) & (rois.probabilities <= 1)).all()):
        raise ValueError('probabilities outside 0 to 1')
    if not bool((rois.boxes[:, 2:] >= rois.boxes[:, :2]).all()):
        raise ValueError('boxes with swapped corners')
