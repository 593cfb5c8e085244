"""The example page finds in a browser what ONNX Runtime finds in Python with the same file."""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lively import enliven
from torch import Tensor, nn

from mtpd.data.images import read_image
from mtpd.detectors.detector import Detector
from mtpd.detectors.references import define_detector
from mtpd.detectors.samples import Sample, make_sample
from mtpd.export.exported import batch_of, open_onnx
from mtpd.export.formats import OPSET, onnx_bytes, recorded
from mtpd.export.program import Program
from mtpd.export.record import ExportRecord, input_geometry
from mtpd.geometry import Size

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / 'examples' / 'web' / 'index.html'
REAL = Path(os.environ.get('MTPD_REAL_DATA', REPOSITORY.parent / 'shared' / 'real')) / 'coco_mini' / 'val2017'
CLASSES = ('circle', 'square', 'star')
# The page's own.
THRESHOLD = 0.4
# Shows the page, and posts what it says once it has ended. Chromium's --dump-dom cannot do this: its virtual time does
# not wait until images are decoded.
WATCHER = """
<!DOCTYPE html><iframe></iframe><script>
const frame = document.querySelector('iframe');
frame.src = 'index.html' + location.search;
const timer = setInterval(() => {
  const page = frame.contentDocument, state = page?.body?.dataset.state;
  if (!['done', 'failed'].includes(state)) return;
  clearInterval(timer);
  const message = page.getElementById('message').textContent;
  const words = row => Array.from(row.cells, cell => cell.textContent);
  const rows = Array.from(page.querySelectorAll('#found tbody tr'), words);
  fetch('/', {method: 'POST', body: JSON.stringify({state, message, rows})});
}, 50);
</script>
"""
# The last one: nothing outside of this machine can be asked for.
CHROMIUM = (
    '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1',
)  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A served folder with the page."""

    folder: Path
    url: str
    posted: 'queue.Queue[Any]'

    def show(self, profile: Path, query: str = '') -> Any:
        """What the page says in a browser: its state, its message, and the rows of its table."""
        command = ['chromium', *CHROMIUM, f'--user-data-dir={profile}', f'{self.url}/watcher.html{query}']
        with open(profile.with_suffix('.log'), 'wb') as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            return self.posted.get(timeout=120)
        except queue.Empty:
            pytest.fail(f'the page has not ended; chromium says: {profile.with_suffix(".log").read_text()[-2000:]}')
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=60)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The page and ONNX Runtime Web, without a detector."""
    if shutil.which('chromium') is None:
        pytest.skip('no chromium on this machine')
    if 'MTPD_ORT_WEB' not in os.environ:
        pytest.skip('no onnxruntime-web: MTPD_ORT_WEB names the folder of its unpacked npm package')
    folder = tmp_path / 'site'
    (folder / 'node_modules').mkdir(parents=True)
    (folder / 'node_modules' / 'onnxruntime-web').symlink_to(os.environ['MTPD_ORT_WEB'])
    shutil.copy(PAGE, folder)
    (folder / 'watcher.html').write_text(WATCHER)
    posted: queue.Queue[Any] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        """Serves the folder, and keeps what is posted."""

        extensions_map = SimpleHTTPRequestHandler.extensions_map | {
            '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm',
        }  # fmt: skip

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def do_POST(self) -> None:
            posted.put(json.loads(self.rfile.read(int(self.headers['Content-Length']))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(folder, f'http://127.0.0.1:{server.server_port}', posted)
        server.shutdown()
        thread.join()


def write_image(path: Path, size: Size) -> None:
    """A real image where there is one, else noise of two scales."""
    height, width = size
    if REAL.is_dir():
        pixels = cv2.resize(read_image(min(REAL.iterdir())), (width, height), interpolation=cv2.INTER_AREA)
    else:
        generator = np.random.default_rng(0)
        coarse = generator.normal(128, 60, (height // 16, width // 16, 3)).repeat(16, 0).repeat(16, 1)
        pixels = (coarse + generator.normal(0, 20, coarse.shape)).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(path), pixels)


def mixed(detector: Detector, sample: Sample) -> Detector:
    """The detector with scores from 0 to 1 in the sample, and no class far above the others."""
    layer: Any = next(one for name, one in detector.module.named_modules() if name.endswith('retina_cls'))

    def shift(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        handle.remove()  # the finest level is enough
        highest = 3 * (output - layer.bias.view(-1, 1, 1))[0].flatten(1).amax(dim=1)
        layer.weight.mul_(3)
        layer.bias.copy_(torch.linspace(0, 1, len(highest)) - highest)

    handle = layer.register_forward_hook(shift)
    detector.find([sample])
    return detector


def write_detector(folder: Path, image: Path, *, size: Size | None, batch: int | None) -> list[tuple[str, float, Any]]:
    """Exports a lively detector; class, score and box of what it finds in the image, by ONNX Runtime in Python."""
    torch.manual_seed(8)
    definition = define_detector(str(REPOSITORY / 'configs' / 'demo' / 'retinanet_tiny.py'))
    own, _ = definition.preprocessing()
    preprocessing = replace(own, geometry=input_geometry(own.geometry, size))
    detector = definition.build(preprocessing, num_classes=len(CLASSES))
    sample = make_sample(read_image(image), image_id=0, geometry=preprocessing.geometry, view='plain')
    network = mixed(enliven(detector, sample), sample).exportable()
    record = ExportRecord(
        mtpd='0',
        detector='tiny',
        checkpoint_sha256='0' * 64,
        classes=CLASSES,
        geometry=preprocessing.geometry,
        normalisation=preprocessing.normalisation,
        size=size,
        batch=batch,
        num_detections=network.num_detections,
        opset=OPSET,
    )
    program = Program(network, preprocessing)
    example = [torch.from_numpy(one) for one in batch_of([sample] * 2, record=record, name='')]
    graph = recorded(program, example, batch=batch is None, size=size is None)
    content = onnx_bytes(graph, example, record, inputs=program.input_names, outputs=program.output_names)
    (folder / 'student.onnx').write_bytes(content)
    (folder / 'student.json').write_text(record.text())
    (found,) = open_onnx(content, name='file').find([sample])
    values = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    return [(CLASSES[label], score, box) for label, score, box in values]


@pytest.mark.parametrize(
    ('image_size', 'size', 'batch'),
    [((96, 128), None, None), ((160, 160), (160, 192), 2)],
    ids=['any size', 'fixed size and batch'],
)
def test_the_page_finds_what_python_finds(
    site: Site, tmp_path: Path, image_size: Size, size: Size | None, batch: int | None
) -> None:
    """In an image that needs no resize, as browsers have their own."""
    write_image(site.folder / 'image.png', image_size)
    every = write_detector(site.folder, site.folder / 'image.png', size=size, batch=batch)
    expected = [one for one in every if one[1] >= THRESHOLD]
    assert {name for name, _, _ in expected} == set(CLASSES)
    assert len(expected) < len(every)
    shown = site.show(tmp_path / 'profile', '?image=image.png')
    assert shown['state'] == 'done', shown['message']
    assert shown['message'].startswith('The detector took ')
    assert [row[0] for row in shown['rows']] == [name for name, _, _ in expected]
    for row, (_, score, box) in zip(shown['rows'], expected, strict=True):
        assert float(row[1]) == pytest.approx(score, abs=0.002)
        assert [float(cell) for cell in row[2:]] == pytest.approx(box, abs=0.2)


def test_errors_are_one_line(site: Site, tmp_path: Path) -> None:
    (site.folder / 'student.json').write_text('{}')
    assert site.show(tmp_path / 'profile') == {
        'state': 'failed',
        'message': 'Error: student.onnx cannot be fetched: the web server answers 404',
        'rows': [],
    }
