"""The polygons of the annotations, most of what they take, are kept where a student has masks alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import mtpd_train.run
from mtpd_train.planning import try_predictions
from mtpd_train.stage import Stage

# mmengine 0.10.7 on Python 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:'pkgutil.find_loader' is deprecated:DeprecationWarning")

MASK_STUDENT = {
    'student': 'mask-rcnn_r50_fpn_1x_coco',
    'model': {'backbone.depth': 18, 'backbone.base_channels': 8, 'neck.in_channels': [8, 16, 32, 64]},
}


@pytest.mark.parametrize(('student', 'has_masks'), [({}, False), (MASK_STUDENT, True)])
def test_masks_are_kept_where_they_are_needed(
    student: dict[str, Any],
    has_masks: bool,
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[bool] = []

    def watched(stages: Sequence[Stage], *rest: Any) -> None:
        sets = [one for stage in stages for one in (stage.train_set, stage.val_set) if one is not None]
        kept.extend(one.coco.has_masks for one in sets)
        try_predictions(stages, *rest)

    monkeypatch.setattr(mtpd_train.run, 'try_predictions', watched)
    train(write_stage(tmp_path / 'stage.yaml', **student), '--out', tmp_path / 'run', '--dry-run', '--trial-steps', 0)
    assert kept == [has_masks, has_masks]
