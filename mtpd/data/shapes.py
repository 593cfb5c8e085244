"""Masks of the shapes that a synthetic set shows."""

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')

SUBPIXEL_BITS = 4  # cv2 draws at 1/16 px


def shape_mask(name: str, centre: tuple[float, float], radius: float, angle: float, size: tuple[int, int]) -> Mask:
    """The pixels of a shape.

    Args:
        name: one of `SHAPES`.
        centre: (x, y) in px.
        radius: of the circumscribed circle, in px.
        angle: by which the shape is turned, in radians.
        size: (height, width) of the mask in px.
    """
    mask = np.zeros(size, np.uint8)
    if name in ('circle', 'ring'):
        _fill(mask, centre, radius * _unit_circle(64), 1)
        if name == 'ring':
            _fill(mask, centre, radius * 0.55 * _unit_circle(64), 0)
    else:
        sine, cosine = np.sin(angle), np.cos(angle)
        turn = np.array([[cosine, sine], [-sine, cosine]])
        _fill(mask, centre, radius * _corners(name) @ turn, 1)
    return mask.astype(bool)


def _corners(name: str) -> npt.NDArray[np.float64]:
    """Corner points (x, y) on and in the unit circle, in order around the shape."""
    if name == 'square':
        return _unit_circle(4)
    if name == 'triangle':
        return _unit_circle(3)
    if name == 'star':
        return _unit_circle(10) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]
    if name == 'cross':
        # The arms are 0.6 of their length wide; (1, 0.3) lies on the circle after scaling.
        arm = np.array([[0.3, 1.0], [0.3, 0.3], [1.0, 0.3]])
        quarters = [arm]
        for _ in range(3):
            quarters.append(quarters[-1] @ np.array([[0.0, -1.0], [1.0, 0.0]]))
        return np.concatenate(quarters) / np.hypot(1.0, 0.3)
    raise AssertionError(name)


def _unit_circle(num_points: int) -> npt.NDArray[np.float64]:
    angles = np.arange(num_points) * 2 * np.pi / num_points
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _fill(mask: npt.NDArray[np.uint8], centre: tuple[float, float], points: npt.NDArray[np.float64], value: int) -> None:
    fixed = np.rint((points + centre) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], value, shift=SUBPIXEL_BITS)
