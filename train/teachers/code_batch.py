"""The codes of a batch, level by level, as the losses take them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtpd.cache.format.codecs import EncodedMaps
from mtpd.geometry import Level, Size
from mtpd.losses.teacher_map import TeacherMap
from mtpd_train.teachers.teacher_source import Encoded


def teacher_maps(
    encoded: Sequence[Encoded], *, levels: Sequence[Level], padded: Size, device: torch.device
) -> dict[str, TeacherMap]:
    """The codes of a batch as `TeacherSource.maps` gives them.

    Args:
        encoded: of each image.
        levels: those to give.
        padded: (height, width) of the student's input, px.
        device: where they are to be.
    """
    return {
        level.name: _together([one[level.name] for one in encoded], grid=level.grid(*padded), device=device)
        for level in levels
    }


def _together(ones: Sequence[EncodedMaps], *, grid: Size, device: torch.device) -> TeacherMap:
    """One level of all images."""
    codes = [one.codes for one in ones]
    sizes: list[Size] = [(one.shape[1], one.shape[2]) for one in codes]
    has_padding = any(size != grid for size in sizes)
    together = None if has_padding or codes[0].device != device else _side_by_side(codes)
    if together is None:
        together = torch.zeros((len(codes), codes[0].shape[0], *grid), dtype=codes[0].dtype, device=device)
        for target, one in zip(together, codes, strict=True):
            target[:, : one.shape[1], : one.shape[2]] = one
    scales, basis = [one.scale for one in ones if one.scale is not None], ones[0].basis
    return TeacherMap(
        codes=together,
        # Copied without waiting for what the device is at.
        scale=torch.stack(scales).to(device, non_blocking=True) if scales else None,
        basis=None if basis is None else basis.to(device),
        sizes=sizes if has_padding else None,
    )


def _side_by_side(codes: Sequence[Tensor]) -> Tensor | None:
    """Maps (C, H, W) of one shape as views of a batch (B, C, H, W), if they lie evenly in one memory; else None."""
    first = codes[0]
    places = [int(one.storage_offset()) for one in codes]
    stride = places[1] - places[0] if len(codes) > 1 else first.numel()
    evenly = places == [places[0] + number * stride for number in range(len(codes))] and stride >= 0
    memories = {(one.untyped_storage().data_ptr(), one.stride()) for one in codes}
    if not evenly or len(memories) > 1:
        return None
    return first.as_strided((len(codes), *first.shape), (stride, *first.stride()), places[0])
