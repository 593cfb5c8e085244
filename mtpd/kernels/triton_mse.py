"""Triton kernels of the weighted mean squared error. The one module that imports Triton; `weighted_mse` launches them.

A program takes a tile of channels x cells of one image. Triton orders the threads of each load along the axis whose
stride is 1, so contiguous and channels-last maps are both read in whole lines, also where student and teacher differ.
The backward pass computes the error again: to store it would move more bytes.

Nothing is added up in an order that could change: there are no atomics, and tiles depend on shapes and strides alone.
The same inputs give the same bits in every run.

All kernels take these arguments:

    student, teacher    maps, or the teacher's codes
    weights             of the cells, contiguous
    scale               step and offset of the codes, or None
    channel_weights     or None
    *_strides           (image, channel, row, column) of maps, in elements; (image, kind, channel) of `scale`, (image,
                        channel) of `channel_weights`
    shape               (channels, cells, width); cells = height width
    is_flat             cells of all maps lie evenly: column strides apart, also from row to row
    alignment           image and channel strides of maps, and cells, are given divided by it. Multiplied here by a
                        constant, they show the compiler that it may load vectors.
"""

import triton
import triton.language as tl


@triton.jit
def forward_kernel(
    student: tl.tensor,
    student_strides: tl.tensor,
    teacher: tl.tensor,
    teacher_strides: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    scale_strides: tl.tensor,
    channel_weights: tl.tensor,
    channel_weights_strides: tl.tensor,
    shape: tl.tensor,
    partials: tl.tensor,
    is_flat: tl.constexpr,
    alignment: tl.constexpr,
    block_channels: tl.constexpr,
    block_cells: tl.constexpr,
) -> None:
    """Writes into float32 partials (2, programs) what each program adds up: weighted squared errors, and weights."""
    tile = _tile(shape, alignment, block_channels, block_cells)
    weight = _cell_weights(weights, shape, tile, alignment)
    output = _values(student, student_strides, shape, tile, is_flat, alignment)
    target = _values(teacher, teacher_strides, shape, tile, is_flat, alignment)
    error = output - _dequantised(target, scale, scale_strides, shape, tile)
    # Chosen, not multiplied: 0 * NaN is NaN.
    squares = tl.sum(tl.where((weight != 0)[None, :], weight[None, :] * error * error, 0.0), axis=1)
    if channel_weights is not None:
        squares *= _per_channel(channel_weights, channel_weights_strides, shape, tile)
    program = tl.program_id(0)
    tl.store(partials + program, tl.sum(squares))
    # All blocks of channels see the same weights: the first one counts them.
    counted = tl.where(tl.min(tile[1]) == 0, tl.sum(weight), 0.0)
    tl.store(partials + tl.num_programs(0) + program, counted)


@triton.jit
def finish_kernel(
    partials: tl.tensor,
    loss: tl.tensor,
    denominator: tl.tensor,
    num_partials: tl.tensor,
    num_channels: tl.tensor,
    num_blocks: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """In one program: adds up partials (2, num_partials) and writes the loss and what it was divided by."""
    squares = tl.zeros((block,), dtype=tl.float32)
    weights = tl.zeros((block,), dtype=tl.float32)
    for index in range(num_blocks):
        position = index * block + tl.arange(0, block)
        squares += tl.load(partials + position, mask=position < num_partials, other=0.0)
        weights += tl.load(partials + num_partials + position, mask=position < num_partials, other=0.0)
    total = tl.sum(weights)
    # Where no cell counts the errors add up to 0, and 0 / 1 is the loss.
    divisor = tl.where(total > 0, total * num_channels, 1.0)
    tl.store(denominator, divisor)
    tl.store(loss, tl.sum(squares) / divisor)


@triton.jit
def backward_kernel(
    student: tl.tensor,
    student_strides: tl.tensor,
    teacher: tl.tensor,
    teacher_strides: tl.tensor,
    weights: tl.tensor,
    scale: tl.tensor,
    scale_strides: tl.tensor,
    channel_weights: tl.tensor,
    channel_weights_strides: tl.tensor,
    shape: tl.tensor,
    grad_loss: tl.tensor,
    denominator: tl.tensor,
    gradient: tl.tensor,
    gradient_strides: tl.tensor,
    is_flat: tl.constexpr,
    alignment: tl.constexpr,
    block_channels: tl.constexpr,
    block_cells: tl.constexpr,
) -> None:
    """Writes the student's gradient; all factors are applied in float32, before it is rounded to its dtype."""
    tile = _tile(shape, alignment, block_channels, block_cells)
    weight = _cell_weights(weights, shape, tile, alignment)
    output = _values(student, student_strides, shape, tile, is_flat, alignment)
    target = _values(teacher, teacher_strides, shape, tile, is_flat, alignment)
    error = output - _dequantised(target, scale, scale_strides, shape, tile)
    # Read on the device: to ask the host for the number would make it wait.
    factor = 2.0 * tl.load(grad_loss).to(tl.float32) / tl.load(denominator)
    slope = factor * weight[None, :] * error
    if channel_weights is not None:
        slope *= _per_channel(channel_weights, channel_weights_strides, shape, tile)[:, None]
    slope = tl.where((weight != 0)[None, :], slope, 0.0)
    position = _positions(gradient_strides, shape, tile, is_flat, alignment)
    tl.store(gradient + position, slope.to(gradient.dtype.element_ty), mask=_exists(shape, tile, alignment))


@triton.jit
def _tile(
    shape: tl.tensor, alignment: tl.constexpr, block_channels: tl.constexpr, block_cells: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """(image, channels, cells) of this program; in 64 bits, as a batch may have more than 2^31 elements."""
    program = tl.program_id(0)
    cell_blocks = tl.cdiv(shape[1] * alignment, block_cells)
    channel_blocks = tl.cdiv(shape[0], block_channels)
    image = (program // cell_blocks // channel_blocks).to(tl.int64)
    channel_block = (program // cell_blocks % channel_blocks).to(tl.int64)
    cell_block = (program % cell_blocks).to(tl.int64)
    channel = channel_block * block_channels + tl.arange(0, block_channels)
    cell = cell_block * block_cells + tl.arange(0, block_cells)
    return image, channel, cell


@triton.jit
def _exists(shape: tl.tensor, tile: tl.tensor, alignment: tl.constexpr) -> tl.tensor:
    """Which elements of the tile the map has, (channels, cells)."""
    return (tile[1] < shape[0])[:, None] & (tile[2] < shape[1] * alignment)[None, :]


@triton.jit
def _positions(
    strides: tl.tensor, shape: tl.tensor, tile: tl.tensor, is_flat: tl.constexpr, alignment: tl.constexpr
) -> tl.tensor:
    """Offsets of the tile's elements in a map, (channels, cells)."""
    plane = (tile[0] * strides[0] + tile[1] * strides[1]) * alignment
    if is_flat:
        within = tile[2] * strides[3]
    else:
        within = tile[2] // shape[2] * strides[2] + tile[2] % shape[2] * strides[3]
    return plane[:, None] + within[None, :]


@triton.jit
def _values(
    maps: tl.tensor,
    strides: tl.tensor,
    shape: tl.tensor,
    tile: tl.tensor,
    is_flat: tl.constexpr,
    alignment: tl.constexpr,
) -> tl.tensor:
    """The tile of a map, float32 (channels, cells); 0 outside of the map."""
    position = _positions(strides, shape, tile, is_flat, alignment)
    return tl.load(maps + position, mask=_exists(shape, tile, alignment), other=0).to(tl.float32)


@triton.jit
def _cell_weights(weights: tl.tensor, shape: tl.tensor, tile: tl.tensor, alignment: tl.constexpr) -> tl.tensor:
    """The weight of each cell of the tile, float32; 0 outside of the map."""
    num_cells = shape[1] * alignment
    return tl.load(weights + tile[0] * num_cells + tile[2], mask=tile[2] < num_cells, other=0).to(tl.float32)


@triton.jit
def _dequantised(
    codes: tl.tensor, scale: tl.tensor, strides: tl.tensor, shape: tl.tensor, tile: tl.tensor
) -> tl.tensor:
    """codes * step + offset, (channels, cells); 0 in channels outside of the map, where all three are."""
    if scale is not None:
        channel_strides = (strides[0], strides[2])
        step = _per_channel(scale, channel_strides, shape, tile)
        offset = _per_channel(scale + strides[1], channel_strides, shape, tile)
        codes = codes * step[:, None] + offset[:, None]
    return codes


@triton.jit
def _per_channel(values: tl.tensor, strides: tl.tensor, shape: tl.tensor, tile: tl.tensor) -> tl.tensor:
    """The value of each channel of the tile, float32; 0 outside of the map."""
    position = tile[0] * strides[0] + tile[1] * strides[1]
    return tl.load(values + position, mask=tile[1] < shape[0], other=0.0).to(tl.float32)
