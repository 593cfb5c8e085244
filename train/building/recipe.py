"""What of a student config's own training recipe a stage does not take over."""

from typing import Any

from mtpd.detectors.recipe import WEIGHTS, recipe_ingredients
from mtpd.detectors.train_pipeline import GEOMETRY, PAD_DIVISOR, PAD_SIZE
from mtpd.geometry import Geometry
from mtpd_train.settings.stage_settings import StageSettings


def not_taken_over(
    config: Any, settings: StageSettings, *, geometry: Geometry, num_steps: int, is_first: bool
) -> tuple[str, ...]:
    """Names of what the recipe asks for and the stage does not do, each with the setting that would, if one does.

    Args:
        config: the student's mmengine Config.
        settings: of the stage.
        geometry: of the student's inputs.
        num_steps: optimizer steps of the stage.
        is_first: whether the student is a new one, or else that of the stage before.
    """
    optim, data, init = settings.optim, settings.data, settings.init
    given = {f'optim.{key}': value for key, value in optim.model_dump().items()}
    if optim.schedule != 'onecycle':
        given['optim.warmup_iters'] = min(500, num_steps // 10) if optim.warmup_iters is None else optim.warmup_iters
        given['optim.warmup_ratio'] = 0.001 if optim.warmup_ratio is None else optim.warmup_ratio
    given |= {
        'data.batch_size': data.batch_size,
        'data.flip': data.flip,
        'data.photometric': data.photometric,
        GEOMETRY: (*geometry.scale, geometry.keep_ratio),
        PAD_SIZE: geometry.pad_size,
        PAD_DIVISOR: geometry.pad_divisor,
        # A student that has weights already wants no others.
        WEIGHTS: (init.fine_tune or init.checkpoint) if is_first else 'those of the stage before',
        'seed': settings.seed,
    }
    return tuple(str(one) for one in recipe_ingredients(config) if not one.is_given(given))
