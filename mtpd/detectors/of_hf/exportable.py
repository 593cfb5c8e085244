"""transformers' detectors as they are exported: the same boxes as their own, as one graph, without suppression."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mtpd.detectors.exportable import Exportable
from mtpd.heads.postprocessing import Candidates


class HfExportable(Exportable):
    """RT-DETR, RT-DETRv2 and D-FINE."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.num_detections = model.config.num_queries

    def forward(self, images: Tensor, limits: Tensor) -> tuple[Candidates, Tensor | None]:
        """See `Exportable`; its boxes are not clipped."""
        outputs = self.raw(images)
        scores, labels, corners = chosen(outputs['class'], outputs['box'])
        height, width = images.shape[2:]
        return Candidates(corners * corners.new_tensor([width, height, width, height]), scores, labels), None

    def raw(self, images: Tensor) -> Mapping[str, Tensor]:
        """`class` (N, queries, classes) and `box` (N, queries, 4)."""
        outputs = self.model(images.to(self.dtype))
        return {'class': outputs.logits.float(), 'box': outputs.pred_boxes.float()}

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Its module asks for the `len` of tensors, which would make a number of the batch's size, and checks sizes."""
        module = sys.modules[type(self.model).__module__]
        checks = patch.dict(os.environ, TRANSFORMERS_DISABLE_TORCH_CHECK='1')
        with patch.object(module, 'len', _len, create=True), checks:
            yield

    def raw_record(self) -> Mapping[str, Any]:
        """What the outputs mean."""
        return {
            'activation': 'sigmoid',
            'boxes': 'centre x, centre y, width, height, relative to the input',
            'selection': {'num_detections': self.num_detections},
        }


def chosen(logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and labels (N, queries), and corners (N, queries, 4) relative to the input, of the best of all classes.

    `logits` are (N, queries, classes), `boxes` (N, queries, 4) centres and sides relative to the input.
    """
    num_queries, num_classes = logits.shape[1:]
    # Its criterion is always that of sigmoids, whatever `use_focal_loss` of its matcher says.
    scores, places = logits.sigmoid().flatten(1).topk(num_queries)
    queries, labels = places // num_classes, places % num_classes
    centres, sizes = boxes[..., :2], boxes[..., 2:]
    corners = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
    return scores, labels, corners.gather(1, queries[..., None].expand(-1, -1, 4))


def _len(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) else len(value)
