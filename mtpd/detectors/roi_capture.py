"""Predictions of a student's RoI head in training: for its own proposals, captured by hooks, or for given RoIs.

Letters: B images, K RoIs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mtpd.heads.roi_head import RoiPredictions


@dataclass
class CapturedRois:
    """Filled during one forward pass of the detector's losses.

    Attributes:
        rois: (K, 5) proposals that were sampled for training: image in the batch, absolute xyxy in px of the input.
        predictions: of the student's head for them.
    """

    rois: Tensor | None = None
    predictions: RoiPredictions | None = None

    def require(self) -> tuple[Tensor, RoiPredictions]:
        """Both."""
        assert self.rois is not None, 'the RoI extractor did not run'
        assert self.predictions is not None, 'the box head did not run'
        return self.rois.detach(), self.predictions


@contextmanager
def captured_rois(model: nn.Module) -> Iterator[CapturedRois]:
    """Collects the sampled proposals and the outputs of the box head without computing anything.

    Args:
        model: a detector that `mtpd.detectors.roi_structure.student_box_coder` lets pass.
    """
    captured = CapturedRois()
    roi_head: Any = model.roi_head

    def keep_rois(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        del module, output
        # A mask branch may share the extractor: the box branch comes first.
        if captured.rois is None:
            captured.rois = inputs[1]

    def keep_predictions(module: nn.Module, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        del module, inputs
        if captured.predictions is None:
            captured.predictions = RoiPredictions(*output)

    handles = [
        roi_head.bbox_roi_extractor.register_forward_hook(keep_rois),
        roi_head.bbox_head.register_forward_hook(keep_predictions),
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def predict_rois(model: nn.Module, maps: Sequence[Tensor], rois: Tensor) -> RoiPredictions:
    """Runs the box head, with gradient, on given RoIs (K, 5) and all maps (B, C, H, W) of the detector's neck."""
    roi_head: Any = model.roi_head
    results = roi_head._bbox_forward(tuple(maps), rois)
    return RoiPredictions(results['cls_score'], results['bbox_pred'])
