#!/usr/bin/env python3
"""Codecs of this program and rivals on the same maps: bits, errors, AP of the teacher's own head, speed.

    scripts/bench_codecs.py --teacher my_config.py --checkpoint my.pth \\
        --teacher file.py:build --checkpoint other.pth --coco data/coco --split val2017 --plot codecs.png

Teachers and checkpoints go in pairs; a `file.py:callable` needs its input as attributes and `predict_from_features`.
`lean` is calibrated on the first images, as an extraction does. Bits count codes, steps and offsets; speeds are
millions of elements a second in one thread, quantisation and compression together. PCodec needs `pip install pcodec`.
Last line: `bits B head-AP-drop D` of the recommended setting (lean, error 0.03), the worst teacher of each.
"""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from numcodecs import BitRound, Blosc, Zstd
from torch import Tensor
from tqdm import tqdm

from measuring import described_parser
from mtpd.cache.format.arrays import ZSTD_LEVELS, chunk_checksum, decode_chunk, encode_chunk
from mtpd.cache.format.codecs import CodecName, Comparison, Covariance, EncodedMaps, encode
from mtpd.data.coco import CocoSet, coco_paths, read_annotations, spread
from mtpd.detectors.input_options import InputOptions
from mtpd.detectors.references import load_teacher
from mtpd.detectors.samples import Sample
from mtpd.detectors.teacher_heads import head_detections, require_head
from mtpd.detectors.teachers import Teacher
from mtpd.evaluation import evaluate
from mtpd_extract.cache_tools.fidelity import view_of
from mtpd_extract.extraction import NUM_BASIS_IMAGES

RECOMMENDED = 'lean 0.03'
CPU = torch.device('cpu')

# Map float32 (C, H, W), basis (C, C) -> bytes that it takes, and what gives the map back.
Pack = Callable[[Tensor, Tensor], tuple[int, Callable[[], Tensor]]]


class Method(NamedTuple):
    """A way to store a map, ours or a rival's."""

    name: str
    pack: Pack
    is_ours: bool = False


@dataclass
class Outcome:
    """What a method did to all maps of a teacher."""

    num_bytes: int = 0
    num_elements: int = 0
    pack_seconds: float = 0.0
    unpack_seconds: float = 0.0
    comparison: Comparison = field(default_factory=Comparison)
    detections: list[dict[str, Any]] = field(default_factory=list)
    ap: float = 0.0

    @property
    def bits(self) -> float:
        return 8 * self.num_bytes / self.num_elements


def our_method(name: str, codec: CodecName, *, target: float | None = None, rotated: bool = True) -> Method:
    """A codec of this program, with the compression of its shards."""

    def pack(maps: Tensor, basis: Tensor) -> tuple[int, Callable[[], Tensor]]:
        used = basis if codec == 'lean' and rotated else None
        encoded = encode(maps[None], codec, target=target, basis=used)
        codes, scale = encoded.codes.numpy(), encoded.scale
        chunk = encode_chunk(codes, level=ZSTD_LEVELS[codec])
        decoded = np.empty_like(codes)

        def unpack() -> Tensor:
            decode_chunk(chunk, out=decoded, checksum=chunk_checksum(chunk), name=name)
            return EncodedMaps(torch.from_numpy(decoded), scale, used).values()[0]

        return len(chunk) + (0 if scale is None else scale.numel() * scale.element_size()), unpack

    return Method(name, pack, is_ours=True)


def as_npy(maps: Tensor, _: Tensor) -> tuple[int, Callable[[], Tensor]]:
    """A file of float32 for each image, as most feature dumps are."""
    file = io.BytesIO()
    np.save(file, maps.numpy(), allow_pickle=False)
    content = file.getvalue()
    return len(content), lambda: torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))


def compressed(dtype: str, compressor: Any, rounding: Any = None) -> Pack:
    """Floats through a compressor, rounded to fewer bits of the mantissa before if asked."""

    def pack(maps: Tensor, _: Tensor) -> tuple[int, Callable[[], Tensor]]:
        values = maps.numpy().astype(dtype)
        if rounding is not None:
            values = rounding.encode(values).view(dtype).reshape(maps.shape)
        content = compressor.encode(np.ascontiguousarray(values))

        def unpack() -> Tensor:
            decoded = np.frombuffer(compressor.decode(content), dtype=dtype).reshape(maps.shape)
            return torch.from_numpy(decoded.astype(np.float32))

        return len(content), unpack

    return pack


def as_absmax_blosc(maps: Tensor, _: Tensor) -> tuple[int, Callable[[], Tensor]]:
    """int8 by the largest magnitude of each channel, through Blosc: the usual way to quantise."""
    compressor = Blosc(cname='zstd', clevel=5, shuffle=Blosc.BITSHUFFLE)
    step = (maps.abs().amax((-2, -1), keepdim=True) / 127).clamp(min=1e-12)
    content = compressor.encode((maps / step).round().to(torch.int8).numpy())

    def unpack() -> Tensor:
        codes = torch.from_numpy(np.frombuffer(compressor.decode(content), np.int8).reshape(maps.shape).copy())
        return codes.float().mul_(step)

    return len(content) + 4 * len(step), unpack


def all_methods() -> list[Method]:
    zstd = Zstd(level=3)
    methods = [
        Method('.npy float32', as_npy),
        Method('fp16, zstd 3', compressed('float16', zstd)),
        *[Method(f'bitround {bits}, zstd 3', compressed('float32', zstd, BitRound(bits))) for bits in (1, 2, 4)],
        Method('int8 absmax, blosc', as_absmax_blosc),
        our_method('fp16', 'fp16'),
        our_method('int8', 'int8'),
        *[our_method(f'lean {target}', 'lean', target=target) for target in (0.003, 0.01, 0.03, 0.1)],
        our_method('lean 0.03, not rotated', 'lean', target=0.03, rotated=False),
    ]
    try:
        from numcodecs.pcodec import PCodec
    except ImportError:
        print('PCodec is left out: pip install pcodec')
    else:
        methods.insert(2, Method('fp16, PCodec', compressed('float16', PCodec(level=8))))
    return methods


def measure(
    teacher: Teacher, coco: CocoSet, folder: Path, *, methods: Sequence[Method], num_images: int
) -> tuple[float, dict[str, Outcome]]:
    require_head(teacher)
    images = spread(coco.images, num_images)
    seen = [view_of(teacher, image, folder=folder, view='plain', device=CPU) for image in images]
    covariances = {level.name: Covariance(level.channels) for level in teacher.levels}
    for _, inputs in seen[:NUM_BASIS_IMAGES]:
        for name, values in teacher.maps(inputs).items():
            covariances[name].add(values)
    bases = {name: covariance.basis() for name, covariance in covariances.items()}
    outcomes = {method.name: Outcome() for method in methods}
    live: list[dict[str, Any]] = []
    for sample, inputs in tqdm(seen, unit='image', desc=Path(teacher.name).name, leave=False):
        maps = {name: values[0] for name, values in teacher.maps(inputs).items()}
        live += detect(teacher, sample, inputs, maps, coco)
        for method in methods:
            outcome = outcomes[method.name]
            found = {name: through(method, outcome, values, bases[name]) for name, values in maps.items()}
            outcome.detections += detect(teacher, sample, inputs, found, coco)
    ids = [image.id for image in images]
    for outcome in outcomes.values():
        outcome.ap = 100 * evaluate(coco, outcome.detections, image_ids=ids).metrics['AP']
    return 100 * evaluate(coco, live, image_ids=ids).metrics['AP'], outcomes


def through(method: Method, outcome: Outcome, maps: Tensor, basis: Tensor) -> Tensor:
    """The map as the method gives it back; adds to the outcome what that took."""
    started = time.perf_counter()
    num_bytes, unpack = method.pack(maps, basis)
    packed = time.perf_counter()
    found = unpack()
    outcome.unpack_seconds += time.perf_counter() - packed
    outcome.pack_seconds += packed - started
    outcome.num_bytes += num_bytes
    outcome.num_elements += maps.numel()
    outcome.comparison.add(found, maps)
    return found


def detect(
    teacher: Teacher, sample: Sample, inputs: Tensor, maps: Mapping[str, Tensor], coco: CocoSet
) -> list[dict[str, Any]]:
    """What the teacher's head finds in the maps (C, H, W) of an image."""
    ordered = [maps[level.name][None] for level in teacher.levels]
    ids = [category.id for category in coco.categories]
    return head_detections(teacher, ordered, inputs=inputs, samples=[sample], category_ids=ids)


def print_table(name: str, live: float, outcomes: Mapping[str, Outcome]) -> None:
    print(f'\n{name}: live AP {live:.2f}')
    print(f'{"method":<24}{"bits":>7}{"error":>10}{"cosine":>9}{"AP":>7}{"drop":>7}{"pack M/s":>10}{"unpack M/s":>11}')
    for method, one in outcomes.items():
        closeness = one.comparison.summary()
        print(
            f'{method:<24}{one.bits:>7.2f}{closeness["mean_error"]:>10.1e}{closeness["mean_cosine"]:>9.5f}'
            f'{one.ap:>7.2f}{live - one.ap:>7.2f}{one.num_elements / one.pack_seconds / 1e6:>10.1f}'
            f'{one.num_elements / one.unpack_seconds / 1e6:>11.1f}'
        )


def plot(path: Path, results: Mapping[str, tuple[float, dict[str, Outcome]]], methods: Sequence[Method]) -> None:
    figure = Figure(figsize=(6.5 * len(results), 4.8), layout='tight')
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for panel, (name, (live, outcomes)) in zip(panels, results.items(), strict=True):
        panel.axhline(live, color='grey', linestyle='--', linewidth=1, label='live')
        for method in methods:
            place = outcomes[method.name].bits, outcomes[method.name].ap
            colour, marker, slant = ('tab:blue', 'o', -40) if method.is_ours else ('tab:orange', 's', 40)
            panel.plot(*place, marker, color=colour)
            # Names of ours hang down from their points and those of rivals rise, so that few of them meet.
            style = {'fontsize': 6.5, 'rotation': slant, 'rotation_mode': 'anchor', 'va': 'center'}
            panel.annotate(method.name, place, (2, slant / 8), textcoords='offset points', **style)
        panel.set(xscale='log', xlabel='bits per element', ylabel='box AP of the own head', title=name)
        panel.set_xticks([1, 2, 4, 8, 16, 32], labels=['1', '2', '4', '8', '16', '32'])
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = described_parser(__doc__)
    add = parser.add_argument
    add('--teacher', action='append', required=True)
    add('--checkpoint', action='append', type=Path, required=True)
    add('--coco', type=Path, default=Path('data/coco'))
    add('--split', default='val2017')
    add('--num-images', type=int, default=200)
    add('--plot', type=Path)
    arguments = parser.parse_args()
    folder, annotations = coco_paths(arguments.coco, arguments.split)
    coco = read_annotations(annotations)
    methods = all_methods()
    results = {}
    for name, checkpoint in zip(arguments.teacher, arguments.checkpoint, strict=True):
        teacher = load_teacher(name, checkpoint=checkpoint, options=InputOptions(), device=CPU)
        shown = Path(name).name
        results[shown] = measure(teacher, coco, folder, methods=methods, num_images=arguments.num_images)
        print_table(shown, *results[shown])
    if arguments.plot:
        plot(arguments.plot, results, methods)
    bits = max(outcomes[RECOMMENDED].bits for _, outcomes in results.values())
    drop = max(live - outcomes[RECOMMENDED].ap for live, outcomes in results.values())
    print(f'bits {bits:.2f} head-AP-drop {drop:.2f}')


if __name__ == '__main__':
    main()
