"""Exported files as detectors.

N images, H W px of the batch, D detections of an image.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtpd.detectors.detector import Detections
from mtpd.detectors.preprocessing import Preprocessing
from mtpd.detectors.samples import Sample
from mtpd.errors import InputError, MtpdError
from mtpd.export.masks import pasted
from mtpd.export.packages import require_packages
from mtpd.export.program import BOXES, IMAGES, LABELS, MASKS, SCORES, SIZES
from mtpd.export.record import KEY, ExportRecord, parse_record

# From images uint8 (N, H, W, 3) and sizes int64 (N, 2) to the outputs in their order.
Run = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class ExportedDetector:
    """A file that finds objects in images."""

    name: str
    record: ExportRecord
    run: Run

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become its inputs."""
        return self.record.preprocessing

    @property
    def has_masks(self) -> bool:
        """Whether the objects that it finds have masks."""
        return self.record.paste is not None

    def find(self, samples: Sequence[Sample]) -> list[Detections]:
        """What it finds in each image, in px of the original image."""
        size = self.record.batch or len(samples)
        found: list[Detections] = []
        for start in range(0, len(samples), size):
            found += self._find(samples[start : start + size])
        return found

    def _find(self, samples: Sequence[Sample]) -> list[Detections]:
        images, sizes = batch_of(samples, record=self.record, name=self.name)
        boxes, scores, labels, *masks = (torch.from_numpy(np.array(one)) for one in self.run(images, sizes))
        found = []
        for number, sample in enumerate(samples):
            count = int((scores[number] > 0).sum())
            (height, width), (resized_height, resized_width) = sample.original, sample.resized
            factors = torch.tensor([width / resized_width, height / resized_height])
            one = boxes[number, :count] * factors.repeat(2)
            image_masks = None
            if self.record.paste is not None:
                image_masks = pasted(masks[0][number, :count], one, size=sample.original, paste=self.record.paste)
            found.append(Detections(one, scores[number, :count], labels[number, :count], image_masks))
        return found


def batch_of(samples: Sequence[Sample], *, record: ExportRecord, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W, 3) RGB and sizes int64 (N, 2), as the file of a record takes them."""
    sizes = np.array([sample.resized for sample in samples], dtype=np.int64)
    height, width = record.size or (int(side) for side in sizes.max(axis=0))
    images = np.zeros((record.batch or len(samples), height, width, 3), dtype=np.uint8)
    for slot, sample in zip(images, samples, strict=False):
        rows, columns = sample.resized
        if rows > height or columns > width:
            raise InputError(
                f'{name}: image {sample.image_id} has {rows} x {columns} px (height x width) after the resize, but the '
                f'file takes {height} x {width} px; export it with a square --size'
            )
        slot[:rows, :columns] = sample.image.permute(1, 2, 0).flip(-1).numpy()
    # A file for batches of one size gets images of 1 px for the missing ones.
    missing = np.ones((len(images) - len(sizes), 2), dtype=np.int64)
    return images, np.concatenate([sizes, missing])


def open_onnx(source: Path | bytes, *, name: str) -> ExportedDetector:
    """An ONNX file, or its content, in ONNX Runtime on the CPU.

    InputError for a file that `mtpd-export` did not write, or whose outputs are raw.
    """
    session, record = open_session(source, name=name)
    if record.raw is not None:
        raise InputError(f'{name}: has the raw outputs of the heads, no boxes; export it without --raw')
    outputs = [BOXES, SCORES, LABELS, *([MASKS] if record.paste else [])]
    expected = {IMAGES: ('tensor(uint8)', 4), SIZES: ('tensor(int64)', 2)}
    inputs = {one.name: (one.type, len(one.shape)) for one in session.get_inputs()}
    if inputs != expected or [one.name for one in session.get_outputs()] != outputs:
        raise InputError(f'{name}: its inputs are {sorted(inputs)}, expected {sorted(expected)}; export it again')

    def run(images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        found: Sequence[np.ndarray] = session.run(outputs, {IMAGES: images, SIZES: sizes})
        return found

    return ExportedDetector(name, record, run)


def open_session(source: Path | bytes, *, name: str) -> tuple[Any, ExportRecord]:
    """ONNX Runtime's session of a file, and its record."""
    require_packages('onnxruntime')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are for its authors
    try:
        session = onnxruntime.InferenceSession(
            source if isinstance(source, bytes) else str(source), options, providers=['CPUExecutionProvider']
        )
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except MtpdError:
        raise
    # Its errors share no class but Exception.
    except Exception as error:
        reason = ' '.join(str(error).split())[:200]
        raise InputError(
            f'{name}: ONNX Runtime {onnxruntime.__version__} cannot load it: {reason}; give a file that mtpd-export '
            'has written'
        ) from error
    return session, parse_record(text, name=name)


def open_torch(content: bytes, *, name: str) -> ExportedDetector:
    """The content of a file of `torch.export`, which must be trusted: it is unpickled."""
    import torchvision  # noqa: F401  registers torch.ops.torchvision

    extra = {f'{KEY}.json': ''}
    module = torch.export.load(io.BytesIO(content), extra_files=extra).module()

    @torch.no_grad()
    def run(images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        found: Sequence[Tensor] = module(torch.from_numpy(images), torch.from_numpy(sizes))
        return [one.numpy() for one in found]

    return ExportedDetector(name, parse_record(extra[f'{KEY}.json'], name=name), run)
