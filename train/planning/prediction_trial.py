"""A prediction of each student before the first epoch, so that a failing one is found before hours of training."""

from collections.abc import Iterable

import torch

from mtpd_train.evaluation import detect
from mtpd_train.seeding import generators_kept
from mtpd_train.stage import Stage

NUM_IMAGES = 2  # a batch, where one image alone might pass


def try_predictions(stages: Iterable[Stage], device: torch.device) -> None:
    """Lets the student of each stage predict as its evaluations will; students of one config are tried once.

    Weights, batch statistics and random generators stay as they are.

    Raises:
        MtpdError: a student cannot predict, or an image cannot be read.
    """
    tried = set()
    for stage in stages:
        if stage.config_text not in tried:
            tried.add(stage.config_text)
            _try_prediction(stage, device)


def _try_prediction(stage: Stage, device: torch.device) -> None:
    model, before = stage.student.model, stage.device
    modes = [(module, module.training) for module in model.modules()]
    model.to(device)
    with generators_kept(device):
        detect(
            stage.student,
            stage.train_set if stage.val_set is None else stage.val_set,
            batch_size=stage.batch_size,
            num_workers=0,
            device=device,
            num_images=NUM_IMAGES,
        )
    model.to(before)
    for module, is_training in modes:
        module.training = is_training
