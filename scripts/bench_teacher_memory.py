#!/usr/bin/env python3
"""Device memory of a batch of teacher features: as codes, which losses use, or as decoded maps.

    scripts/bench_teacher_memory.py                       # tensors of a CPU, as many bytes as on a GPU, about a minute
    scripts/bench_teacher_memory.py --device cuda         # as the GPU's allocator counts them

P3 to P7 of an input of 800x1333, padded to 800x1344, 256 channels; in `mixed` batches every second image is narrower,
so that codes are padded together. MB: `stream`, the codes as they arrive; `held` beside them until the step is over,
and `peak` beside them while that is made: of codes, and of float32 maps. Bytes are those of the tensors that live, each
memory counted once. Last line: `codes/decoded R`, of all bytes held, `lean` in the largest batch of one size.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker

from measuring import described_parser
from mtpd.cache.format.codecs import CodecName, EncodedMaps, batch_images, encode
from mtpd.geometry import Level

CODECS: tuple[CodecName, ...] = ('fp16', 'int8', 'lean')
STRIDES = (8, 16, 32, 64, 128)
Encoded = Mapping[str, EncodedMaps]


def image_codes(codec: CodecName, levels: tuple[Level, ...], padded: tuple[int, int]) -> Encoded:
    encoded = {}
    for level in levels:
        maps = torch.randn(1, level.channels, *level.grid(*padded))
        basis = torch.linalg.qr(torch.randn(level.channels, level.channels))[0]
        encoded[level.name] = encode(maps, codec, basis=basis)
    return encoded


def streamed(images: list[Encoded], device: torch.device) -> tuple[list[Encoded], Tensor]:
    """The images as the stream of codes gives them: one after another in one memory; and that memory."""
    buffer = torch.cat([one.codes.flatten() for image in images for one in image.values()]).to(device)
    start = 0
    moved: list[Encoded] = []
    bases = {name: None if one.basis is None else one.basis.to(device) for name, one in images[0].items()}
    for image in images:
        views: dict[str, EncodedMaps] = {}
        for name, one in image.items():
            codes = buffer[start : start + one.codes.numel()].view(one.codes.shape)
            views[name] = replace(one, codes=codes, basis=bases[name])
            start += one.codes.numel()
        moved.append(views)
    return moved, buffer


def bytes_of(make: Callable[[], Any], given: list[Encoded], device: torch.device) -> tuple[int, int]:
    """Bytes that live when it is made of `given`, and the most while it is made, beyond those of `given`."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        held = make()
        now, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    else:
        # The allocator of a CPU does not say: what operators give out is counted while it lives.
        tracker = MemTracker()
        parts = [part for image in given for one in image.values() for part in (one.codes, one.scale, one.basis)]
        tracker.track_external(*(part for part in parts if part is not None))
        before = tracker.get_tracker_snapshot()[device]['Total']
        with tracker:
            held = make()
        now, peak = (tracker.get_tracker_snapshot(kind)[device]['Total'] for kind in ('current', 'peak'))
    del held
    return now - before, peak - before


def main() -> None:
    parser = described_parser(__doc__)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--batches', nargs='+', type=int, default=[2, 16])
    parser.add_argument('--channels', type=int, default=256)
    parser.add_argument('--padded', nargs=2, type=int, default=[800, 1344], metavar=('H', 'W'))
    options = parser.parse_args()
    device, (height, width) = torch.device(options.device), options.padded
    levels = tuple(Level(f'p{number}', stride, options.channels) for number, stride in enumerate(STRIDES, 3))
    columns = ('stream', 'held: codes', 'decoded', 'peak: codes', 'decoded')
    print(f'{"codec":<6}{"batch":>6}{"":>7}' + ''.join(f'{name:>13}' for name in columns))
    ratio = 0.0
    for codec in CODECS:
        whole, narrow = (image_codes(codec, levels, (height, one)) for one in (width, width * 3 // 4))
        for batch, is_mixed in product(sorted(options.batches), (True, False)):
            images = [narrow if is_mixed and number % 2 else whole for number in range(batch)]
            encoded, buffer = streamed(images, device)
            codes, codes_peak = bytes_of(partial(_batched, encoded), encoded, device)
            decoded, decoded_peak = bytes_of(partial(_decoded, encoded), encoded, device)
            row = (buffer.nbytes, codes, decoded, codes_peak, decoded_peak)
            shown = ''.join(f'{one / 1e6:>13.2f}' for one in row)
            print(f'{codec:<6}{batch:>6}{"mixed" if is_mixed else "":>7}{shown}', flush=True)
            ratio = (buffer.nbytes + codes) / (buffer.nbytes + decoded)
    print(f'codes/decoded {ratio:.3f}')


def _batched(images: list[Encoded]) -> dict[str, EncodedMaps]:
    return {name: batch_images([one[name] for one in images]) for name in images[0]}


def _decoded(images: list[Encoded]) -> list[Tensor]:
    return [one.values() for one in _batched(images).values()]


if __name__ == '__main__':
    main()
