"""A look at what the teacher of a stage gives for its first images, before the training starts."""

import torch

from mtpd.detectors.detection import collate
from mtpd.detectors.teacher_maps import require_repeated
from mtpd.map_statistics import MapStatistics
from mtpd_train.stage import Stage
from mtpd_train.training.step import loaded, to_device
from mtpd_train.training.targets import teacher_targets

NUM_IMAGES = 4


def check_teacher(stage: Stage, device: torch.device) -> None:
    """Refuses a teacher whose maps are as good as constant on a level that a loss compares.

    Args:
        stage: about to be trained, on `device`.
        device: where to compute.

    Raises:
        MtpdError: it names the level; or an image or a map cannot be read.
    """
    if stage.source is None or not stage.teacher_levels:
        return
    # The same in all processes, so that they end together; without processes that read, which start with the training.
    requests = stage.epoch_batches(0)[0][:NUM_IMAGES]
    for samples, ahead in loaded(stage, [requests], num_workers=0):
        moved = to_device(samples, device)
        images = collate(moved, preprocessing=stage.student.preprocessing, device=device)
        targets = teacher_targets(stage, moved, ahead, images)
        assert targets is not None
        if stage.source.kind == 'teachers':
            again = teacher_targets(stage, moved, ahead, images)
            assert again is not None
            first, second = ([one.values() for one in each.maps.values()] for each in (targets, again))
            require_repeated(first, second, name=stage.source.name)
        for level in stage.teacher_levels:
            statistics = MapStatistics(level.name)
            statistics.add(targets.maps[level.name].values(), targets.masks[level.name])
            statistics.require_varied(name=stage.source.name, advice='exclude the level with `levels`')
