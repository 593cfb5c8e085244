"""Triton kernels of the weighted mean squared error. The one module that imports Triton; `weighted_mse` launches them.

A program takes a tile of channels x cells of one image. Triton orders the threads of each load along the axis whose
stride is 1, so contiguous and channels-last maps are both read in whole lines, also where student and teacher differ.
The backward pass computes the error again: to store it would move more bytes.

Nothing is added up in an order that could change: there are no atomics, and tiles depend on shapes and layouts alone.
The same inputs give the same bits in every run.

`forward_kernel` and `backward_kernel` take these arguments:

    student, teacher    maps, or the teacher's codes
    weights             of the cells (B, H W), contiguous
    scale               step and offset of the codes (B, 2, C), contiguous, or None
    channel_weights     (B, C), contiguous, or None
    *_stride            of a map from image to image, in its `*_unit`
    num_cells           H W, in `cell_unit`
    *_layout            of the images of a map: 'contiguous', 'channels_last', or 'single', one value for all elements
    *_unit              powers of 2. Multiplied here by a constant, numbers show the compiler that it may load vectors;
                        Triton's own way, to specialise numbers, would compile again for nearly every size of images.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=['student_stride', 'teacher_stride', 'num_cells', 'level', 'first'])
def forward_kernel(
    student: tl.tensor,
    teacher: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    channel_weights: tl.tensor,
    partials: tl.tensor,
    bounds: tl.tensor,
    level: tl.tensor,
    first: tl.tensor,
    student_stride: tl.tensor,
    teacher_stride: tl.tensor,
    num_cells: tl.tensor,
    channels: tl.constexpr,
    student_layout: tl.constexpr,
    student_unit: tl.constexpr,
    teacher_layout: tl.constexpr,
    teacher_unit: tl.constexpr,
    cell_unit: tl.constexpr,
    block_channels: tl.constexpr,
    block_cells: tl.constexpr,
) -> None:
    """Writes what each program adds up, weighted squared errors over C and weights, into float32 partials (N, 2).

    Those of a level begin at `first`; bounds, int32 (levels, 2), say where they begin and end.
    """
    num_cells *= cell_unit
    tile = _tile(num_cells, channels, block_channels, block_cells)
    exists = _exists(tile, channels, num_cells, block_channels)
    weight = _cell_weights(weights, tile, num_cells)
    output = _values(student, student_stride * student_unit, student_layout, tile, exists, channels, num_cells)
    target = _values(teacher, teacher_stride * teacher_unit, teacher_layout, tile, exists, channels, num_cells)
    error = output - _dequantised(target, scale, tile, channels)
    squares = error * error
    if channel_weights is not None:
        squares *= _per_channel(channel_weights, tile[0], tile[1], channels)[:, None]
    # Channels first: it leaves one product and one choice for each cell.
    squares = tl.sum(squares, axis=0)
    # Chosen, not multiplied: 0 * NaN is NaN.
    squares = tl.sum(tl.where(weight != 0, weight * squares, 0.0))
    # All blocks of channels see the same weights: the first one counts them.
    counted = tl.where(tl.min(tile[1]) == 0, tl.sum(weight), 0.0)
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    partials += 2 * (first + program)
    tl.store(partials, squares / channels)
    tl.store(partials + 1, counted)
    if program == 0:
        tl.store(bounds + 2 * level, first)
        tl.store(bounds + 2 * level + 1, first + num_programs)


@triton.jit
def finish_kernel(
    partials: tl.tensor, bounds: tl.tensor, losses: tl.tensor, totals: tl.tensor, block: tl.constexpr
) -> None:
    """A program for each level: adds up its partials and writes its loss and the sum of its weights."""
    level = tl.program_id(0)
    first, last = tl.load(bounds + 2 * level), tl.load(bounds + 2 * level + 1)
    squares = tl.zeros((block,), dtype=tl.float32)
    weights = tl.zeros((block,), dtype=tl.float32)
    for start in range(first, last, block):
        position = start + tl.arange(0, block)
        squares += tl.load(partials + 2 * position, mask=position < last, other=0.0)
        weights += tl.load(partials + 2 * position + 1, mask=position < last, other=0.0)
    total = tl.sum(weights)
    # Where no cell counts the errors add up to 0, and 0 / 1 is the loss.
    total = tl.where(total > 0, total, 1.0)
    tl.store(totals + level, total)
    tl.store(losses + level, tl.sum(squares) / total)


@triton.jit(do_not_specialize=['student_stride', 'teacher_stride', 'gradient_stride', 'num_cells', 'level'])
def backward_kernel(
    student: tl.tensor,
    teacher: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    channel_weights: tl.tensor,
    grad_losses: tl.tensor,
    totals: tl.tensor,
    level: tl.tensor,
    gradient: tl.tensor,
    gradient_stride: tl.tensor,
    student_stride: tl.tensor,
    teacher_stride: tl.tensor,
    num_cells: tl.tensor,
    channels: tl.constexpr,
    student_layout: tl.constexpr,
    student_unit: tl.constexpr,
    teacher_layout: tl.constexpr,
    teacher_unit: tl.constexpr,
    cell_unit: tl.constexpr,
    block_channels: tl.constexpr,
    block_cells: tl.constexpr,
) -> None:
    """Writes the student's gradient, of its layout; all factors are applied in float32, before it is rounded."""
    num_cells *= cell_unit
    tile = _tile(num_cells, channels, block_channels, block_cells)
    exists = _exists(tile, channels, num_cells, block_channels)
    weight = _cell_weights(weights, tile, num_cells)
    output = _values(student, student_stride * student_unit, student_layout, tile, exists, channels, num_cells)
    target = _values(teacher, teacher_stride * teacher_unit, teacher_layout, tile, exists, channels, num_cells)
    error = output - _dequantised(target, scale, tile, channels)
    # Read on the device: to ask the host for the number would make it wait.
    factor = 2.0 * tl.load(grad_losses + level).to(tl.float32) / (tl.load(totals + level) * channels)
    slope = factor * weight[None, :] * error
    if channel_weights is not None:
        slope *= _per_channel(channel_weights, tile[0], tile[1], channels)[:, None]
    slope = tl.where((weight != 0)[None, :], slope, 0.0)
    position = _positions(gradient_stride * student_unit, student_layout, tile, channels, num_cells)
    tl.store(gradient + position, slope.to(gradient.dtype.element_ty), mask=exists)


@triton.jit
def _tile(
    num_cells: tl.tensor, channels: tl.constexpr, block_channels: tl.constexpr, block_cells: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(image, channels, cells) of this program; in 64 bits, as a batch may have more than 2^31 elements."""
    program = tl.program_id(0)
    cell_blocks = tl.cdiv(num_cells, block_cells)
    channel_blocks = tl.cdiv(channels, block_channels)
    image = (program // cell_blocks // channel_blocks).to(tl.int64)
    channel_block = (program // cell_blocks % channel_blocks).to(tl.int64)
    cell_block = (program % cell_blocks).to(tl.int64)
    channel = channel_block * block_channels + tl.arange(0, block_channels)
    cell = cell_block * block_cells + tl.arange(0, block_cells)
    return image, channel, cell


@triton.jit
def _exists(tile: tl.tensor, channels: tl.constexpr, num_cells: tl.tensor, block_channels: tl.constexpr) -> tl.tensor:
    """Which elements of the tile the map has, (channels or 1, cells)."""
    exists = (tile[2] < num_cells)[None, :]
    if channels % block_channels != 0:
        exists &= (tile[1] < channels)[:, None]
    return exists


@triton.jit
def _positions(
    stride: tl.tensor, layout: tl.constexpr, tile: tl.tensor, channels: tl.constexpr, num_cells: tl.tensor
) -> tl.tensor:
    """Offsets of the tile's elements in a map, (channels, cells)."""
    image = tile[0] * stride
    if layout == 'channels_last':
        return (image + tile[2] * channels)[None, :] + tile[1][:, None]
    return (image + tile[1] * num_cells)[:, None] + tile[2][None, :]


@triton.jit
def _values(
    maps: tl.tensor,
    stride: tl.tensor,
    layout: tl.constexpr,
    tile: tl.tensor,
    exists: tl.tensor,
    channels: tl.constexpr,
    num_cells: tl.tensor,
) -> tl.tensor:
    """The tile of a map, float32 (channels, cells), 0 outside of the map; or the single value."""
    if layout == 'single':
        values = tl.load(maps)
    else:
        values = tl.load(maps + _positions(stride, layout, tile, channels, num_cells), mask=exists, other=0)
    return values.to(tl.float32)


@triton.jit
def _cell_weights(weights: tl.tensor, tile: tl.tensor, num_cells: tl.tensor) -> tl.tensor:
    """The weight of each cell of the tile, float32; 0 outside of the map."""
    return tl.load(weights + tile[0] * num_cells + tile[2], mask=tile[2] < num_cells, other=0).to(tl.float32)


@triton.jit
def _dequantised(codes: tl.tensor, scale: tl.tensor, tile: tl.tensor, channels: tl.constexpr) -> tl.tensor:
    """codes * step + offset, (channels, cells); 0 in channels outside of the map, where all three are."""
    if scale is not None:
        step = _per_channel(scale, 2 * tile[0], tile[1], channels)
        offset = _per_channel(scale, 2 * tile[0] + 1, tile[1], channels)
        codes = codes * step[:, None] + offset[:, None]
    return codes


@triton.jit
def _per_channel(values: tl.tensor, row: tl.tensor, channel: tl.tensor, channels: tl.constexpr) -> tl.tensor:
    """The values of the tile's channels in a row of (rows, C), float32; 0 outside of the map."""
    return tl.load(values + row * channels + channel, mask=channel < channels, other=0.0).to(tl.float32)
