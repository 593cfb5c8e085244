"""Masks of the shapes that a synthetic set shows."""

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'ring')

SUBPIXEL_BITS = 4  # cv2 draws at 1/16 px


def shape_mask(name: str, centre: tuple[float, float], radius: float, angle: float, size: tuple[int, int]) -> Mask:
    """The pixels of a shape.

    Args:
        name: one of `SHAPES`.
        centre: (x, y) in px.
        radius: of the circumscribed circle, in px.
        angle: by which the shape is turned clockwise from upright, in radians.
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


def _corners(name: str) -> Points:
    """Corner points (x, y) of the upright shape, on and in the unit circle, in order around it."""
    if name == 'square':
        return _unit_circle(4, start=np.pi / 4)
    if name == 'triangle':
        return _unit_circle(3, start=-np.pi / 2)
    if name == 'star':
        points = _unit_circle(10, start=-np.pi / 2)
        points[1::2] *= 0.45
        return points
    if name == 'cross':
        # The arms are 0.6 of their length wide; (1, 0.3) lies on the circle after scaling.
        arm = np.array([[0.3, 1.0], [0.3, 0.3], [1.0, 0.3]])
        quarters = [arm]
        for _ in range(3):
            quarters.append(quarters[-1] @ np.array([[0.0, -1.0], [1.0, 0.0]]))
        points = np.concatenate(quarters)
        points /= np.hypot(1.0, 0.3)
        return points
    raise AssertionError(name)


def _unit_circle(num_points: int, *, start: float = 0.0) -> Points:
    angles = start + np.arange(num_points) * 2 * np.pi / num_points
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def _fill(mask: npt.NDArray[np.uint8], centre: tuple[float, float], points: Points, value: int) -> None:
    fixed = np.rint((points + centre) * (1 << SUBPIXEL_BITS)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], value, shift=SUBPIXEL_BITS)
