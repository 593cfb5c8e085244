"""The stream of codes: what it gives, the memory that it takes, and processes that start beside its threads."""

import itertools
import multiprocessing
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.data.coco import read_annotations
from mtpd.errors import CacheDamagedError
from mtpd.geometry import Geometry
from mtpd_train.data.dataset import DetectionDataset, load_batches
from mtpd_train.data.sampling import Request
from mtpd_train.teachers.cached_teacher import batches_ahead, cached_teacher
from mtpd_train.teachers.teacher_source import ReadAhead

# From Python 3.12 on, a fork of a process with several threads warns.
pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')

# Tiny caches of every codec, with images of two shapes.
GOLDEN = Path(__file__).resolve().parents[2] / 'cache' / 'golden' / 'v1'
CPU = torch.device('cpu')
NUM_AHEAD = 7


@pytest.fixture(params=['fp16', 'int8', 'lean'])
def reader(request: pytest.FixtureRequest) -> CacheReader:
    return mtpd.cache.open(GOLDEN / request.param)


def some_batches(reader: CacheReader, number: int) -> list[list[Request]]:
    """Of one to three images, all images and views in turn."""
    requests = itertools.cycle(Request(one, view) for view in reader.views for one in reader.image_ids)
    return [list(itertools.islice(requests, 1 + place % 3)) for place in range(number)]


def streamed(
    reader: CacheReader, batches: Sequence[Sequence[Request]], *, levels: Sequence[str], device: torch.device = CPU
) -> Iterator[ReadAhead]:
    return cached_teacher(reader, num_threads=3, num_ahead=NUM_AHEAD).read_ahead(batches, levels=levels, device=device)


def require_maps(reader: CacheReader, batch: Sequence[Request], ahead: ReadAhead, *, names: Sequence[str]) -> None:
    """Codes and decoded maps of a batch are those of its images, and zero beyond."""
    padded = [max(reader.sizes(one.image_id).padded[side] for one in batch) for side in (0, 1)]
    levels = [level for level in reader.levels if level.name in names]
    assert {name: tuple(maps.shape) for name, maps in ahead.maps.items()} == {
        level.name: (len(batch), level.channels, *level.grid(padded[0], padded[1])) for level in levels
    }
    for number, one in enumerate(batch):
        wanted = reader.read_encoded(one.image_id, one.view, levels=names)
        for name, encoded in wanted.items():
            _, _, height, width = encoded.shape
            codes, whole = (values[number].cpu() for values in (ahead.maps[name].codes, ahead.maps[name].values()))
            torch.testing.assert_close(codes[:, :height, :width], encoded.codes[0], rtol=0, atol=0)
            torch.testing.assert_close(whole[:, :height, :width], encoded.values()[0], rtol=1e-5, atol=1e-5)
            assert not whole[:, height:].any()
            assert not whole[:, :, width:].any()


@pytest.mark.parametrize('part', [slice(None), slice(1)], ids=['all levels', 'the first'])
def test_every_batch_holds_until_the_next_is_asked_for(reader: CacheReader, part: slice) -> None:
    names, batches = [level.name for level in reader.levels][part], some_batches(reader, 20)
    places = set()
    for batch, ahead in zip(batches, streamed(reader, batches, levels=names), strict=True):
        time.sleep(0.005)  # the threads would now overwrite what they may
        require_maps(reader, batch, ahead, names=names)
        if len({reader.sizes(one.image_id).padded for one in batch}) == 1:  # else the maps are copied together
            places.add(ahead.maps[names[0]].codes.data_ptr())
    assert len(places) <= batches_ahead(NUM_AHEAD, 3, batch_bytes=1) + 1 == 4


def test_a_tight_budget_of_memory(reader: CacheReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('mtpd_train.teachers.cached_teacher.MAX_BYTES', 1)
    names, batches = [level.name for level in reader.levels], some_batches(reader, 12)
    places = set()
    for batch, ahead in zip(batches, streamed(reader, batches, levels=names), strict=True):
        time.sleep(0.005)
        require_maps(reader, batch, ahead, names=names)
        if len({reader.sizes(one.image_id).padded for one in batch}) == 1:  # else the maps are copied together
            places.add(ahead.maps[names[0]].codes.data_ptr())
    assert len(places) == 2


@pytest.mark.parametrize(
    ('num_images', 'batch_size', 'batch_bytes', 'depth'),
    [
        (32, 16, 0, 2),
        (32, 16, 10, 2),
        (33, 16, 10, 3),
        (1, 16, 10, 1),
        (32, 2, 5, 16),
        (32, 2, 10, 9),
        (32, 2, 50, 1),
        (32, 16, 99, 1),
        (32, 0, 0, 32),
    ],
)
def test_batches_ahead(
    num_images: int, batch_size: int, batch_bytes: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mtpd_train.teachers.cached_teacher.MAX_BYTES', 100)
    assert batches_ahead(num_images, batch_size, batch_bytes=batch_bytes) == depth


def test_the_images_of_a_batch_are_read_together(reader: CacheReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are threads wait for the disk at the same time, even of the only batch."""
    together = threading.Barrier(4, timeout=30)
    read = CacheReader.read_encoded

    def slow(*arguments: Any, **options: Any) -> Any:
        together.wait()
        return read(*arguments, **options)

    monkeypatch.setattr(CacheReader, 'read_encoded', slow)
    names, batch = [level.name for level in reader.levels], some_batches(reader, 3)[2] + some_batches(reader, 1)[0]
    source = cached_teacher(reader, num_threads=4, num_ahead=1)
    assert len(list(source.read_ahead([batch], levels=names, device=CPU))) == 1


def test_damage_is_raised_where_its_batch_would_have_come(tmp_path: Path) -> None:
    root = tmp_path / 'cache'
    shutil.copytree(GOLDEN / 'int8', root)
    reader = mtpd.cache.open(root)
    good, bad = reader.image_ids[0], reader.image_ids[-1]
    assert reader.shard(good) != reader.shard(bad)
    key = reader.shard(bad)
    damaged = root / key.bucket / 'plain' / reader.levels[0].name / 'c' / str(key.shard) / '0' / '0' / '0'
    content = bytearray(damaged.read_bytes())
    content[8] ^= 1
    damaged.write_bytes(content)
    stream = streamed(reader, [[Request(one, 'plain')] for one in (good, good, bad)], levels=[reader.levels[0].name])
    next(stream)
    next(stream)
    with pytest.raises(CacheDamagedError, match='checksum'):
        next(stream)
    assert not [one for one in threading.enumerate() if one.name.startswith('prefetch')]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')


@pytest.fixture
def late_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work on a side stream begins some 10 ms after it was ordered, so that what does not wait for it is wrong."""
    enter = torch.cuda.stream

    def delayed(stream: torch.cuda.Stream) -> Any:
        with enter(stream):
            torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        return enter(stream)

    monkeypatch.setattr(torch.cuda, 'stream', delayed)


def require_stream(reader: CacheReader) -> None:
    """The stream on a GPU gives what the cache has."""
    device = torch.device('cuda')
    names, batches = [level.name for level in reader.levels], some_batches(reader, 60)
    for batch, ahead in zip(batches, streamed(reader, batches, levels=names, device=device), strict=True):
        assert ahead.maps[names[0]].codes.is_cuda
        require_maps(reader, batch, ahead, names=names)


@needs_gpu
def test_on_a_gpu(reader: CacheReader) -> None:
    require_stream(reader)


@needs_gpu
@pytest.mark.usefixtures('late_copies')
def test_copies_that_are_late(reader: CacheReader) -> None:
    require_stream(reader)


@needs_gpu
@pytest.mark.usefixtures('late_copies')
@pytest.mark.parametrize('wait', ['Stream.wait_event', 'Event.synchronize'])
def test_late_copies_show_a_wait_that_is_missing(wait: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f'torch.cuda.{wait}', lambda *_: None)
    with pytest.raises(AssertionError):
        require_stream(mtpd.cache.open(GOLDEN / 'int8'))


@pytest.mark.slow
@pytest.mark.parametrize('start_method', ['fork', 'spawn'])
def test_workers_start_while_codes_are_read(start_method: Literal['fork', 'spawn'], synthetic_set: Path) -> None:
    """Threads read and decompress all the time, while processes start and give images, again and again."""
    reader = mtpd.cache.open(GOLDEN / 'int8')
    names = [level.name for level in reader.levels]
    coco = read_annotations(synthetic_set / 'annotations' / 'instances_train2017.json')
    folder, geometry = synthetic_set / 'train2017', Geometry((64, 64))
    dataset = DetectionDataset(coco, folder, geometry=geometry, for_training=True, with_masks=False)
    wanted = [[Request(one, 'plain')] for one in list(dataset.sizes())[:4]]
    stop, counts = threading.Event(), [0]

    def consume() -> None:
        while not stop.is_set():
            for _ in streamed(reader, some_batches(reader, 50), levels=names):
                counts[0] += 1

    thread = threading.Thread(target=consume)
    thread.start()
    try:
        for _ in range(8 if start_method == 'fork' else 1):
            before = counts[0]
            loaded: Any = load_batches(dataset, wanted, num_workers=2, start_method=start_method)
            images: list[Tensor] = [one.image for one in next(loaded)]
            for worker in multiprocessing.active_children():
                # As a scheduler does: they go on all the same. Of this process they would hear it.
                subprocess.run(['kill', str(worker.pid)], check=False)
            images += [one.image for samples in loaded for one in samples]
            assert len(images) == len(wanted)
            assert counts[0] > before
    finally:
        stop.set()
        thread.join()
