"""Samples of a split: odd images, odd annotations, worker processes, and what cannot be read."""

import gc
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from mtpd.data.coco import read_annotations
from mtpd.detectors.samples import Sample
from mtpd.errors import InputError, MtpdError
from mtpd.geometry import Geometry
from mtpd_train.data.dataset import DetectionDataset, load_batches
from mtpd_train.data.sampling import Request

# From Python 3.12 on, a fork of a process with several threads warns; torch's DataLoader forks, and torch has threads.
pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')

MakeSet = Callable[..., Path]


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """`make_set(images, annotations)` writes a split of one category; images: file name -> PIL image."""

    def make(images: dict[str, Image.Image], annotations: dict[str, list[dict[str, Any]]]) -> Path:
        document: dict[str, Any] = {'images': [], 'annotations': [], 'categories': [{'id': 3, 'name': 'thing'}]}
        for number, (name, image) in enumerate(images.items(), start=1):
            image.save(tmp_path / name)
            document['images'].append({'id': number, 'file_name': name, 'width': image.width, 'height': image.height})
            for one in annotations.get(name, []):
                identity = len(document['annotations']) + 1
                document['annotations'].append({'id': identity, 'image_id': number, 'category_id': 3} | one)
        (tmp_path / 'instances.json').write_text(json.dumps(document))
        return tmp_path

    return make


def dataset_of(folder: Path, *, for_training: bool = True, with_masks: bool = False) -> DetectionDataset:
    coco = read_annotations(folder / 'instances.json')
    return DetectionDataset(coco, folder, geometry=Geometry((64, 64)), for_training=for_training, with_masks=with_masks)


def picture(mode: str = 'RGB') -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 4)).astype(np.uint8)
    if mode == 'L':
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels, 'CMYK') if mode == 'CMYK' else Image.fromarray(pixels[..., :3]).convert(mode)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")  # the only way to make CMYK
def test_grey_cmyk_and_palette_images(make_set: MakeSet) -> None:
    modes = {'grey.jpg': 'L', 'print.jpg': 'CMYK', 'palette.png': 'P', 'alpha.png': 'RGBA', 'plain.png': 'RGB'}
    folder = make_set({name: picture(mode) for name, mode in modes.items()}, {})
    dataset = dataset_of(folder)
    for number, name in enumerate(modes, start=1):
        sample = dataset[Request(number, 'plain')]
        assert isinstance(sample, Sample)
        assert sample.image.shape == (3, 48, 64)
        want = cv2.imread(str(folder / name), cv2.IMREAD_COLOR)
        assert torch.equal(sample.image, torch.from_numpy(want).permute(2, 0, 1))


def test_annotations_of_training(make_set: MakeSet) -> None:
    """A crowd is to be ignored; what lies outside or is thinner than a pixel goes; one pixel stays."""
    boxes = {'object': [4, 8, 20, 16], 'pixel': [30, 30, 1, 1], 'outside': [70, 10, 5, 5], 'thin': [10, 10, 0.5, 9]}
    annotations: list[dict[str, Any]] = [{'bbox': box} for box in boxes.values()]
    annotations.append({'bbox': [0, 0, 32, 24], 'iscrowd': 1})
    dataset = dataset_of(make_set({'a.png': picture(), 'b.png': picture()}, {'a.png': annotations}), with_masks=True)
    sample = dataset[Request(1, 'plain')]
    assert isinstance(sample, Sample)
    instances = sample.objects
    assert instances.boxes.tolist() == [[4, 8, 24, 24], [30, 30, 31, 31]]
    assert instances.labels.tolist() == [0, 0]
    assert instances.masks is not None
    # Without a segmentation the box is its own mask.
    assert float(instances.masks[0].sum()) == pytest.approx(20 * 16, rel=0.15)
    assert sample.objects.ignored.tolist() == [[0, 0, 32, 24]]


def test_images_with_nothing_to_find(make_set: MakeSet) -> None:
    crowd = {'bbox': [0, 0, 32, 24], 'iscrowd': 1}
    found = {'bbox': [0, 0, 32, 24]}
    images = {'object.png': picture(), 'empty.png': picture(), 'crowd.png': picture()}
    dataset = dataset_of(make_set(images, {'object.png': [found], 'crowd.png': [crowd]}))
    assert set(dataset.sizes()) == {1, 2, 3}
    assert dataset.sizes(with_objects=True) == {1: (48, 64)}


def test_equal_sizes_are_one_object(make_set: MakeSet) -> None:
    """Of COCO there are a hundred thousand."""
    sizes = dataset_of(make_set({f'{number}.png': picture() for number in range(3)}, {})).sizes()
    assert len(sizes) == 3
    assert len(set(map(id, sizes.values()))) == 1


def test_evaluation_samples_have_no_annotations(make_set: MakeSet) -> None:
    dataset = dataset_of(make_set({'a.png': picture()}, {'a.png': [{'bbox': [0, 0, 9, 9]}]}), for_training=False)
    sample = dataset[Request(1, 'plain')]
    assert isinstance(sample, Sample)
    assert sample.target is None


def test_missing_images_are_counted(make_set: MakeSet) -> None:
    folder = make_set({name: picture() for name in ('a.png', 'b.png', 'c.png')}, {})
    (folder / 'b.png').unlink()
    (folder / 'c.png').unlink()
    with pytest.raises(InputError, match=r'2 of 3 images of instances\.json are missing, the first is b\.png'):
        dataset_of(folder)


def test_an_image_of_which_the_resize_leaves_nothing(make_set: MakeSet) -> None:
    folder = make_set({'a.png': Image.new('RGB', (1, 500))}, {})
    with pytest.raises(InputError, match=r'a\.png: 1 x 500 px would be an empty image at scale 64x64'):
        dataset_of(folder)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_a_truncated_image_is_named_in_one_line(num_workers: int, make_set: MakeSet) -> None:
    folder = make_set({'a.jpg': picture(), 'b.jpg': picture()}, {})
    content = (folder / 'b.jpg').read_bytes()
    (folder / 'b.jpg').write_bytes(content[: len(content) // 2])
    batches = [[Request(1, 'plain')], [Request(2, 'plain')]]
    loaded = load_batches(dataset_of(folder), batches, num_workers=num_workers)
    assert [one.image_id for one in next(loaded)] == [1]
    with pytest.raises(InputError, match=r'b\.jpg: not a complete image') as caught:
        next(loaded)
    assert '\n' not in str(caught.value)


def test_more_workers_than_cores_are_no_warning(make_set: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would repeat it in every epoch."""
    folder = make_set({'a.png': picture()}, {})
    monkeypatch.setattr('os.sched_getaffinity', lambda _: {0})
    assert len(list(load_batches(dataset_of(folder), [[Request(1, 'plain')]], num_workers=2))) == 1


@pytest.mark.parametrize('num_workers', [0, 1, 2])
def test_batches_come_in_order(num_workers: int, make_set: MakeSet) -> None:
    folder = make_set({f'{number}.png': picture() for number in range(6)}, {})
    batches = [[Request(2, 'plain'), Request(5, 'flip')], [Request(6, 'flip')], [Request(1, 'flip')]]
    found = list(load_batches(dataset_of(folder), batches, num_workers=num_workers))
    assert [[(one.image_id, one.view) for one in samples] for samples in found] == batches


def test_workers_are_deaf_to_signals(make_set: MakeSet) -> None:
    """A scheduler sends them to all processes of a job; those that read go on until the job has what it needs."""
    folder = make_set({f'{number}.png': picture() for number in range(12)}, {})
    requests = [[Request(number, 'plain')] for number in range(1, 13)]
    others = {*multiprocessing.active_children()}  # which tests before this one may have left
    loaded = load_batches(dataset_of(folder), requests, num_workers=1)
    found = [next(loaded)[0].image_id]
    (worker,) = {*multiprocessing.active_children()} - others
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not by this process, whose wish to end it is heard.
        subprocess.run(['kill', f'-{number}', str(worker.pid)], check=True)
    found += [samples[0].image_id for samples in loaded]
    assert found == list(range(1, 13))
    worker.join(10)
    assert worker.exitcode == 0


def test_workers_end_when_their_program_does(make_set: MakeSet) -> None:
    """Who leaves a loader in the middle sends SIGTERM at the exit, and waits for what it has sent it to."""
    folder = make_set({f'{number}.png': picture() for number in range(12)}, {})
    others = {*multiprocessing.active_children()}
    loaded = load_batches(dataset_of(folder), [[Request(number, 'plain')] for number in range(1, 13)], num_workers=1)
    next(loaded)
    (worker,) = {*multiprocessing.active_children()} - others
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('num_workers', [0, 1])
def test_pixels_are_pinned_for_a_gpu(num_workers: int, make_set: MakeSet) -> None:
    dataset = dataset_of(make_set({'a.png': picture()}, {}))
    for pinned in (False, True):
        (samples,) = load_batches(dataset, [[Request(1, 'plain')]], num_workers=num_workers, pin_memory=pinned)
        assert samples[0].image.is_pinned() == pinned


class Recording(DetectionDataset):
    """Notes the process that reads each image."""

    def __getitem__(self, request: Request) -> Sample | MtpdError:
        (self.folder / f'{request.image_id}.pid').write_text(str(os.getpid()))
        return super().__getitem__(request)


def test_workers_start_while_other_threads_run(make_set: MakeSet) -> None:
    """A thread that takes and gives back locks all the time, as tqdm's and the cache's do, must not hang a worker."""
    folder = make_set({f'{number}.png': picture() for number in range(1, 4)}, {})
    coco = read_annotations(folder / 'instances.json')
    dataset = Recording(coco, folder, geometry=Geometry((64, 64)), for_training=True, with_masks=False)
    stop, lock = threading.Event(), threading.RLock()

    def busy() -> None:
        while not stop.is_set():
            with lock:
                time.sleep(1e-4)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(3):
            loaded: Iterator[Any] = load_batches(dataset, [[Request(1, 'plain')], [Request(2, 'flip')]], num_workers=1)
            assert len(list(loaded)) == 2
    finally:
        stop.set()
        thread.join()
    assert {int((folder / f'{number}.pid').read_text()) for number in (1, 2)} != {os.getpid()}


class CountingFrozen(DetectionDataset):
    """Notes how many objects the collector of the process that reads an image leaves alone."""

    def __getitem__(self, request: Request) -> Sample | MtpdError:
        (self.folder / 'frozen').write_text(str(gc.get_freeze_count()))
        return super().__getitem__(request)


def test_workers_leave_what_they_share_alone(make_set: MakeSet) -> None:
    """Else the first full collection of each copies all objects of its parent, over 100 MB."""
    folder = make_set({'a.png': picture()}, {})
    coco = read_annotations(folder / 'instances.json')
    dataset = CountingFrozen(coco, folder, geometry=Geometry((64, 64)), for_training=True, with_masks=False)
    assert len(list(load_batches(dataset, [[Request(1, 'plain')]], num_workers=1, start_method='fork'))) == 1
    assert int((folder / 'frozen').read_text()) > 0.9 * len(gc.get_objects())
    # The parent's collections would make what it shares private to it.
    assert gc.get_freeze_count() > 0.9 * len(gc.get_objects())
    gc.unfreeze()


LIMITED = """
import resource, sys
from pathlib import Path
from mtpd.data.coco import read_annotations
from mtpd.errors import MtpdError
from mtpd.geometry import Geometry
from mtpd_train.data.dataset import DetectionDataset, load_batches
from mtpd_train.data.sampling import Request

folder, hard = Path(sys.argv[1]), int(sys.argv[2])
coco = read_annotations(folder / 'instances.json')
dataset = DetectionDataset(coco, folder, geometry=Geometry((64, 64)), for_training=True, with_masks=False)
resource.setrlimit(resource.RLIMIT_NOFILE, (96, hard))
batches = [[Request(1, 'plain')] * 64] * 4
try:
    print(sum(len(samples) for samples in list(load_batches(dataset, batches, num_workers=2))))
except MtpdError as error:
    print(error)
"""


@pytest.mark.parametrize('hard', [400, 448])
def test_more_open_files_than_the_soft_limit(hard: int, make_set: MakeSet) -> None:
    """The limit is raised as far as it may be; where that is not enough, one line says so."""
    folder = make_set({'a.png': picture()}, {'a.png': [{'bbox': [0, 0, 9, 9]}]})
    command = [sys.executable, '-c', LIMITED, str(folder), str(hard)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    refusal = rf'data\.workers: .* need up to 448 open files, but the system allows {hard}; .*'
    assert re.fullmatch(r'256\n' if hard >= 448 else rf'{refusal}\n', result.stdout), result.stdout + result.stderr
