#!/usr/bin/env python3
"""What grows with the number of images: made-up annotations, images and codes in the numbers of COCO train2017.

    scripts/bench_scale.py --work /dev/shm/scale     # all at 118,287 images, about 15 minutes
    scripts/bench_scale.py --parts annotations batches reads
    scripts/bench_scale.py --parts objects365        # 1.7 million images, about 10 minutes and 4 GB of disk
    scripts/bench_scale.py --images 2000             # at toy size

The annotations have 7 objects with polygons an image. The cache has COCO's padded shapes at 1333x800, its levels P3 to
P7, its shard groups and both views, and is written by the real writer and read by the real reader; only the maps have
32 channels of zeros in place of 256, so that it takes 2 GB. Images are few JPEG files under many names. The folder is
deleted in the end. Each part runs in a process of its own, so that its memory is its own:

    annotations   reading and checking the file
    objects365    the same for 1.7 million images with 15 boxes, without polygons
    batches       what padding adds to a batch of 16; an epoch of batches, at 1 million images too
    records       plan, index and manifest, at 1 million images too: the records of a cache without its shards
    write         the cache; a start of the writer that finds it half done
    open          the images are there; the cache, and the memory that it takes
    reads         images in random order, 1,000 of them against all, when the tables of all have been read
    latency       with a wait of 10 ms in each read, with the settings' defaults, at batch 16
    parts         64 processes that finish their part of the cache at the same time
    start         `mtpd-train --dry-run`, of which one step is a real one
    workers       private memory of a worker process before and after `--worker-images` images

Processor time is of all processes of a part. Last line: `within W of G`, how many goals are met.
"""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import safetensors.torch
import torch

import mtpd.cache
from measuring import described_parser
from mtpd.cache.format.codecs import EncodedMaps
from mtpd.cache.format.manifest import (
    MANIFEST_FILE,
    Description,
    FileRecord,
    GeometryRecord,
    LevelRecord,
    write_manifest,
)
from mtpd.cache.format.plan import CachePlan, SourceImage, plan_cache
from mtpd.cache.reading.cache_files import CacheFiles
from mtpd.cache.writing.destination import FolderDestination
from mtpd.cache.writing.journal import manifest_of
from mtpd.cache.writing.parts import WHOLE, Part
from mtpd.cache.writing.plan_file import read_plan_file
from mtpd.cache.writing.writer import CacheWriter
from mtpd.data.coco import missing_images, read_annotations
from mtpd.geometry import Geometry, Level, Size
from mtpd.system.files import sha256_file
from mtpd_train.data.dataset import DetectionDataset, load_batches
from mtpd_train.data.sampling import Request, training_batches
from mtpd_train.settings.stage_settings import DataSettings
from mtpd_train.teachers.cached_teacher import cached_teacher

STUDENT = Path(__file__).resolve().parents[1] / 'configs' / 'demo' / 'student.py'
GEOMETRY = Geometry((1333, 800))
LEVELS = tuple(Level(f'p{number}', 2**number, 32) for number in range(3, 8))
REAL_LEVELS = tuple(Level(one.name, one.stride, 256) for one in LEVELS)
VIEWS: tuple[Any, ...] = ('plain', 'flip')
NUM_COCO, NUM_OBJECTS365, NUM_PARTS = 118_287, 1_700_000, 64
FEW_IMAGES = 1000
BATCH_SIZE, LATENCY = 16, 0.01
DECODING_SECONDS = 3.8e-3  # an image of real maps, of docs/benchmarks.md: 265 a second


@dataclass(frozen=True)
class Figure:
    """A row of the table."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    is_least: bool = False  # else the goal is the most that it may be

    @property
    def is_met(self) -> bool | None:
        if self.goal is None:
            return None
        return self.value >= self.goal if self.is_least else self.value <= self.goal


@dataclass(frozen=True)
class Place:
    """Where everything is."""

    root: Path
    num_images: int
    num_worker_images: int

    @property
    def annotations(self) -> Path:
        return self.root / 'annotations' / 'instances_train2017.json'

    @property
    def images(self) -> Path:
        return self.root / 'train2017'

    @property
    def cache(self) -> Path:
        return self.root / 'cache'


def image_sizes(number: int) -> list[Size]:
    """(height, width) in px, mixed about as COCO's: the longer side 640, half of them 4:3, a quarter portrait."""
    chooser = random.Random(0)
    sizes = []
    for _ in range(number):
        kind = chooser.random()
        short = 480 if kind < 0.45 else chooser.randint(425, 428) if kind < 0.72 else chooser.randint(320, 640)
        short = chooser.randint(140, 320) if kind > 0.985 else short
        sizes.append((640, short) if chooser.random() < 0.25 else (short, 640))
    return sizes


def write_annotations(path: Path, num_images: int, *, num_objects: int, with_polygons: bool) -> None:
    """A file with COCO's keys; every value is made up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chooser = np.random.default_rng(0)
    sizes = image_sizes(num_images)
    angles = {number: np.linspace(0, 2 * np.pi, number, endpoint=False) for number in range(6, 40)}
    with path.open('w') as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for image_id, (height, width) in enumerate(sizes):
            file.write(
                f'{", " if image_id else ""}{{"license": 3, "file_name": "{image_id:012d}.jpg", "height": {height}, '
                f'"width": {width}, "date_captured": "2013-11-14 11:18:45", "id": {image_id}, "coco_url": '
                f'"http://images.cocodataset.org/train2017/{image_id:012d}.jpg"}}'
            )
        file.write('], "annotations": [')
        for image_id, (height, width) in enumerate(sizes):
            shares, lengths = chooser.random((num_objects, 4)).tolist(), chooser.integers(6, 40, num_objects).tolist()
            for number, ((left, top, wide, high), length) in enumerate(zip(shares, lengths, strict=True)):
                x, y, w, h = left * width * 0.7, top * height * 0.7, 2 + wide * width * 0.29, 2 + high * height * 0.29
                polygon = ''
                if with_polygons:
                    columns, rows = np.cos(angles[length]), np.sin(angles[length])
                    points = np.stack([x + w / 2 * (1 + columns), y + h / 2 * (1 + rows)], axis=1).round(2)
                    polygon = f'"segmentation": [{points.ravel().tolist()}], '
                file.write(
                    f'{", " if image_id + number else ""}{{{polygon}"area": {w * h * 0.78:.4f}, "iscrowd": 0, '
                    f'"image_id": {image_id}, "bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}], '
                    f'"category_id": {1 + (image_id + number) % 80}, "id": {image_id * num_objects + number}}}'
                )
        names = (f'{{"id": {number}, "name": "class {number}"}}' for number in range(1, 81))
        file.write(f'], "categories": [{", ".join(names)}]}}')


def write_images(place: Place) -> None:
    """One JPEG file for each size, under the names of all images."""
    place.images.mkdir(parents=True, exist_ok=True)
    files: dict[Size, Path] = {}
    for image_id, size in enumerate(image_sizes(place.num_images)):
        path = place.images / f'{image_id:012d}.jpg'
        if size not in files:
            noise = np.random.default_rng(0).integers(0, 255, (size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC))
            files[size] = path
        else:
            try:
                os.link(files[size], path)
            except OSError:  # too many links to one file
                shutil.copy(files[size], path)
                files[size] = path


def cache_plan(num_images: int) -> CachePlan:
    """The shards of real maps: an image takes 2 bits for an element."""
    images = [SourceImage(number, size) for number, size in enumerate(image_sizes(num_images))]
    return plan_cache(images, geometry=GEOMETRY, levels=REAL_LEVELS, bytes_per_element=0.25)


def cache_writer(root: Path, place: Place, *, part: Part = WHOLE) -> CacheWriter:
    return made_up_writer(root, place.num_images, digest=sha256_file(place.annotations), part=part)


def made_up_writer(root: Path, num_images: int, *, digest: str = '', part: Part = WHOLE) -> CacheWriter:
    description = Description(
        fingerprint={'data': {'annotations': digest}},
        provenance={'teacher': 'made up'},
        levels=tuple(LevelRecord(**vars(level)) for level in LEVELS),
        codec='int8',
        views=VIEWS,
        geometry=GeometryRecord(**vars(GEOMETRY)),
    )
    weights = safetensors.torch.save({'neck.weight': torch.zeros(1)})
    plan, destination = cache_plan(num_images), FolderDestination(root, part=part)
    return CacheWriter(destination, description=description, plan=plan, teacher_weights=weights)


def write_groups(writer: CacheWriter, number: int | None = None) -> None:
    """Writes groups that are pending, at most `number`."""
    for key in writer.pending()[:number]:
        group, bucket = writer.start_group(key), writer.plan.by_name[key.bucket]
        rows = len(writer.plan.images(key))
        scale = torch.ones(rows, 2, LEVELS[0].channels)
        for view in VIEWS:
            maps = {}
            for level in LEVELS:
                codes = torch.zeros(1, level.channels, *level.grid(*bucket.padded), dtype=torch.int8)
                maps[level.name] = EncodedMaps(codes.expand(rows, -1, -1, -1), scale=scale, error=torch.zeros(rows))
            group.append(view, maps)
        writer.commit(group)


def measure_annotations(place: Place) -> Iterator[Figure]:
    before, start = resident_bytes(), time.process_time()
    read_annotations(place.annotations)
    yield Figure('annotations of the set', time.process_time() - start, 's', 10)
    yield Figure('annotations, peak memory beyond the imports', (peak_bytes() - before) / 1e6, 'MB', 500)


def measure_objects365(place: Place) -> Iterator[Figure]:
    path = place.root / 'objects365.json'
    num_images = NUM_OBJECTS365 * place.num_images // NUM_COCO
    write_annotations(path, num_images, num_objects=15, with_polygons=False)
    before, start = resident_bytes(), time.process_time()
    coco = read_annotations(path)
    path.unlink()
    yield Figure(f'annotations of {len(coco.images):,} images, 15 boxes', time.process_time() - start, 's')
    yield Figure('  peak memory beyond the imports', (peak_bytes() - before) / 1e6, 'MB', 4000)


def measure_batches(place: Place) -> Iterator[Figure]:
    for number, goal in ((place.num_images, 3.0), (place.num_images * 1_000_000 // NUM_COCO, None)):
        padded = {image_id: GEOMETRY.padded(size) for image_id, size in enumerate(image_sizes(number))}
        start = time.process_time()
        batches = training_batches(padded, batch_size=BATCH_SIZE, flip=0.5, seed=(0, 1, 0))
        yield Figure(f'an epoch of batches, {number:,} images', time.process_time() - start, 's')
        if goal is None:
            continue
        yield Figure(f'cells that padding adds at batch {BATCH_SIZE}', added_cells(batches, padded), '%', goal)
        mixed = mixed_batches(padded)
        yield Figure('  with landscape and portrait apart only', added_cells(mixed, padded), '%')


def mixed_batches(padded: Mapping[int, Size]) -> list[list[Request]]:
    """Batches of random landscape or portrait images, as of mmdet's sampler."""
    shuffled = random.Random(0).sample(sorted(padded), len(padded))
    batches = []
    for is_portrait in (False, True):
        images = [one for one in shuffled if (padded[one][0] > padded[one][1]) == is_portrait]
        for start in range(0, len(images), BATCH_SIZE):
            batches.append([Request(one, 'plain') for one in images[start : start + BATCH_SIZE]])
    return batches


def added_cells(batches: list[list[Request]], padded: Mapping[int, Size]) -> float:
    """Cells beyond those of each image's own input, in percent of these."""
    own = computed = 0
    for batch in batches:
        sizes = [padded[one.image_id] for one in batch]
        own += sum(height * width for height, width in sizes)
        computed += len(sizes) * max(height for height, _ in sizes) * max(width for _, width in sizes)
    return 100 * (computed / own - 1)


def measure_records(place: Place) -> Iterator[Figure]:
    for number in (place.num_images, place.num_images * 1_000_000 // NUM_COCO):
        root, start = place.root / f'records{number}', time.process_time()
        writer = made_up_writer(root, number)
        yield Figure(f'plan and index of {number:,} images', time.process_time() - start, 's')
        start = time.process_time()
        with writer:
            pass
        yield Figure('  start of the writer', time.process_time() - start, 's')
        plan = read_plan_file(root)
        record = FileRecord(num_bytes=1, sha256='0' * 64)
        groups = {key: dict.fromkeys(files, record) for key, files in plan.group_files().items()}
        write_manifest(root, manifest_of(plan, groups))
        del writer, plan, groups
        yield Figure('  manifest', (root / MANIFEST_FILE).stat().st_size / 1e6, 'MB')
        before, start = resident_bytes(), time.process_time()
        reader = mtpd.cache.open(root)
        yield Figure('  opening', time.process_time() - start, 's')
        num_files, used = len(reader.manifest.files), resident_bytes() - before
        yield Figure(f'  memory, {num_files:,} files on record', used / 1e6, 'MB')
        del reader


def measure_write(place: Place) -> Iterator[Figure]:
    start = time.process_time()
    with cache_writer(place.cache, place) as writer:
        num_groups = len(writer.pending())
        write_groups(writer, num_groups // 2)
    half = time.process_time() - start
    start = time.process_time()
    with cache_writer(place.cache, place) as writer:
        yield Figure('start of a writer that finds half of the cache', time.process_time() - start, 's')
        start = time.process_time()
        write_groups(writer)
        writer.finish()
    num_files = len(mtpd.cache.open(place.cache).manifest.files)
    yield Figure(f'writing {num_groups:,} groups, {num_files:,} files', half + time.process_time() - start, 's')


def measure_open(place: Place) -> Iterator[Figure]:
    coco = read_annotations(place.annotations)
    start = time.process_time()
    assert not missing_images(coco.images, place.images)
    yield Figure('looking for all images', time.process_time() - start, 's')
    before, start = resident_bytes(), time.process_time()
    reader = mtpd.cache.open(place.cache)
    yield Figure('opening the cache', time.process_time() - start, 's')
    yield Figure('  memory', (resident_bytes() - before) / 1e6, 'MB')
    for image_id in reader.image_ids:
        for view in VIEWS:
            reader.errors(image_id, view)
    yield Figure('  memory when the tables of both views have been read', (resident_bytes() - before) / 1e6, 'MB')


def measure_reads(place: Place) -> Iterator[Figure]:
    """Codes of the smallest level, so that they cost next to nothing beside what is measured."""
    reader = mtpd.cache.open(place.cache)
    levels = [LEVELS[-1].name]
    chooser = random.Random(0)
    for image_id in reader.image_ids:
        reader.errors(image_id)

    def seconds(image_ids: list[int]) -> float:
        start = time.process_time()
        for image_id in image_ids:
            reader.read_encoded(image_id, 'plain', levels=levels)
        return (time.process_time() - start) / len(image_ids)

    few = reader.image_ids[:FEW_IMAGES]
    rounds = []
    for _ in range(7):
        ways = {'few': chooser.choices(few, k=4000), 'all': chooser.choices(reader.image_ids, k=4000)}
        rounds.append({name: seconds(ids) for name, ids in ways.items()})
    of_few, of_all = (float(np.median([one[name] for one in rounds])) for name in ('few', 'all'))
    yield Figure(f'a read of one level, {FEW_IMAGES:,} images', 1e6 * of_few, 'us')
    yield Figure('a read of one level, all images in random order', 1e6 * of_all, 'us')
    ratio = 1 + len(LEVELS) * (of_all - of_few) / DECODING_SECONDS
    yield Figure('  all against few, of a read of five real levels (3.8 ms)', ratio, '', 1.1)


def measure_latency(place: Place) -> Iterator[Figure]:
    """The codes of five levels by the stream of the trainer, while every read waits."""
    reader = mtpd.cache.open(place.cache)
    for image_id in reader.image_ids:
        for view in VIEWS:
            reader.errors(image_id, view)
    data = DataSettings()
    padded = {one: reader.sizes(one).padded for one in reader.image_ids}
    read_range = CacheFiles.read_range

    def slow(*arguments: Any, **options: Any) -> bytes:
        time.sleep(LATENCY)
        return read_range(*arguments, **options)

    with mock.patch.object(CacheFiles, 'read_range', slow):
        for name, threads in (('', data.read_threads), (' with 16 threads', 16)):
            source = cached_teacher(reader, num_threads=threads, num_ahead=max(data.read_ahead, 2 * threads))
            batches = training_batches(padded, batch_size=BATCH_SIZE, flip=0.5, seed=(0, 1, 0))[:40]
            stream = source.read_ahead(batches, levels=[one.name for one in LEVELS], device=torch.device('cpu'))
            next(stream)
            start = time.perf_counter()
            num_batches = sum(1 for _ in stream)
            speed = num_batches * BATCH_SIZE / (time.perf_counter() - start)
            goal = None if name else 60.0
            yield Figure(f'images a second at {1000 * LATENCY:.0f} ms a read{name}', speed, '', goal, is_least=True)


def measure_parts(place: Place) -> Iterator[Figure]:
    root = place.root / 'parts'
    with cache_writer(root, place) as writer:
        num_groups = len(writer.pending())
        write_groups(writer)
    context = multiprocessing.get_context('fork')
    barrier = context.Barrier(NUM_PARTS)

    def finish(index: int) -> None:
        with cache_writer(root, place, part=Part(index, NUM_PARTS)) as writer:
            barrier.wait()
            start = time.perf_counter()
            writer.finish()
            times.put(time.perf_counter() - start)

    times: Any = context.SimpleQueue()
    (root / '.lock').unlink(missing_ok=True)
    processes = [context.Process(target=finish, args=(number,)) for number in range(1, NUM_PARTS + 1)]
    for process in processes:
        process.start()
    waits: list[float] = []
    reader = threading.Thread(target=lambda: waits.extend(times.get() for _ in processes), daemon=True)
    reader.start()
    for process in processes:
        process.join()
    reader.join(timeout=5)
    num_failed = sum(process.exitcode != 0 for process in processes)
    yield Figure(f'of {NUM_PARTS} parts that finish together, failed', num_failed, '', 0)
    yield Figure(f'  the longest wait, {num_groups:,} groups', max(waits, default=float('nan')), 's')
    assert len(mtpd.cache.open(root)) == place.num_images
    shutil.rmtree(root)


def measure_start(place: Place) -> Iterator[Figure]:
    stage = place.root / 'stage.yaml'
    stage.write_text(
        json.dumps(
            {
                'student': str(STUDENT),
                'cache': str(place.cache),
                'init': {'backbone': 'none'},
                'distill': [{'loss': 'masked_mse'}],
                'data': {'coco': str(place.root), 'val': None, 'batch_size': 1, 'workers': 1},
                'optim': {'lr': 1e-3, 'epochs': 12},
            }
        )
    )
    command = ['mtpd-train', str(stage), '--out', str(place.root / 'run'), '--dry-run', '--trial-steps', '1']
    # The first run compiles the libraries where that has not been done.
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONDONTWRITEBYTECODE'}
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, '--device', 'cpu'], check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    yield Figure('mtpd-train to its first steps', spent, 's', 20)
    yield Figure('  peak memory', after.ru_maxrss * 1024 / 1e6, 'MB', 1200)


def measure_workers(place: Place) -> Iterator[Figure]:
    coco = read_annotations(place.annotations)
    dataset = DetectionDataset(coco, place.images, geometry=Geometry((133, 80)), for_training=True, with_masks=False)
    chooser = random.Random(0)
    wanted = [Request(one, 'plain') for one in chooser.choices(list(dataset.sizes()), k=place.num_worker_images)]
    batches = [wanted[start : start + BATCH_SIZE] for start in range(0, len(wanted), BATCH_SIZE)]
    loaded = load_batches(dataset, batches, num_workers=1, start_method='fork')
    for _ in islice(loaded, 4):
        pass
    [worker] = multiprocessing.active_children()
    yield Figure('private memory of a worker at first', private_bytes(worker.pid) / 1e6, 'MB')
    most = 0
    for number, _ in enumerate(loaded):
        if number < len(batches) - 10:  # it ends with its last batch
            most = max(most, private_bytes(worker.pid)) if number % 50 == 0 else most
    yield Figure(f'  after {len(wanted):,} images', most / 1e6, 'MB', 100)


PARTS: dict[str, Callable[[Place], Iterator[Figure]]] = {
    'annotations': measure_annotations,
    'objects365': measure_objects365,
    'batches': measure_batches,
    'records': measure_records,
    'write': measure_write,
    'open': measure_open,
    'reads': measure_reads,
    'latency': measure_latency,
    'parts': measure_parts,
    'start': measure_start,
    'workers': measure_workers,
}
NEED_CACHE = {'open', 'reads', 'latency', 'start'}


def measured(part: str, place: Place) -> list[Figure]:
    return list(PARTS[part](place))


def private_bytes(pid: int | None) -> int:
    """Memory that a process shares with no other."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith('Private_'))


def resident_bytes() -> int:
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = described_parser(__doc__)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=[one for one in PARTS if one != 'objects365'])
    parser.add_argument('--images', type=int, default=NUM_COCO, help='number of images (%(default)s)')
    parser.add_argument('--worker-images', type=int, default=20_000, help='of part `workers` (%(default)s)')
    parser.add_argument('--work', type=Path, help='folder to make and to delete; needs 5 GB (a temporary one)')
    arguments = parser.parse_args()
    parts = [one for one in PARTS if one in arguments.parts]
    if NEED_CACHE & set(parts) and 'write' not in parts:
        parts.insert(0, 'write')
    root = arguments.work or Path(tempfile.mkdtemp())
    place = Place(root, arguments.images, arguments.worker_images)
    figures = []
    try:
        write_annotations(place.annotations, place.num_images, num_objects=7, with_polygons=True)
        write_images(place)
        for part in parts:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
                for figure in pool.submit(measured, part, place).result():
                    figures.append(figure)
                    goal = '' if figure.goal is None else f'{figure.goal:g}'
                    met = {None: '', True: 'met', False: 'MISSED'}[figure.is_met]
                    print(f'{figure.name:<58}{figure.value:>10.4g} {figure.unit:<3}{goal:>7} {met}', flush=True)
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(root)
    goals = [one.is_met for one in figures if one.is_met is not None]
    print(f'within {sum(goals)} of {len(goals)}')


if __name__ == '__main__':
    main()
