"""A detector of transformers as mtpd runs it."""

import json
import logging
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mtpd.detectors.detector import Detections, Detector, hooked
from mtpd.detectors.exportable import Exportable
from mtpd.detectors.hook_points import NECK_MAPS
from mtpd.detectors.levels import levels_of
from mtpd.detectors.of_hf.exportable import HfExportable, chosen
from mtpd.detectors.of_hf.library import one_line, quiet, transformers_of
from mtpd.detectors.of_hf.model_config import MODELS, with_classes
from mtpd.detectors.of_hf.place import PREPROCESSOR_FILE
from mtpd.detectors.of_hf.preprocessor import write_preprocessor
from mtpd.detectors.preprocessing import probe_size
from mtpd.detectors.samples import Sample
from mtpd.errors import InputError, MtpdError
from mtpd.geometry import Level, Size
from mtpd.system.files import unwritable, write_output

logger = logging.getLogger(__name__)

# In the folder of a stage: what `from_pretrained` loads.
SAVED_FOLDER = 'hf'


@dataclass(frozen=True)
class HfDetector(Detector):
    """See `Detector`. Its maps are those of the hybrid encoder, which the decoder gets."""

    backbone: ClassVar[str] = 'model.backbone'

    def losses(self, images: Tensor, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The terms of its criterion, weighted; crowd regions are left out, as its authors do."""
        labels = [_labels(sample, images) for sample in samples]
        losses: dict[str, Tensor] = self.module(images, labels=labels).loss_dict
        return losses

    @torch.no_grad()
    def predict(self, images: Tensor, samples: Sequence[Sample]) -> list[Detections]:
        """As `post_process_object_detection` of its image processor, without a threshold."""
        outputs = self.module(images)
        scores, labels, corners = chosen(outputs.logits.float(), outputs.pred_boxes.float())
        height, width = images.shape[2:]
        found = []
        for number, sample in enumerate(samples):
            # Relative to the padded input -> px of the input -> px of the original image.
            factors = (width * sample.original[1] / sample.resized[1], height * sample.original[0] / sample.resized[0])
            found.append(
                Detections(corners[number] * corners.new_tensor(factors).repeat(2), scores[number], labels[number])
            )
        return found

    @contextmanager
    def captured_maps(self, *, hook_point: str = NECK_MAPS) -> Iterator[list[Tensor]]:
        """What the encoder gives."""
        _require_encoder(hook_point)
        maps: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
            maps[:] = outputs.last_hidden_state

        with hooked(self.module.get_submodule('model.encoder'), keep):
            yield maps

    @contextmanager
    def given_maps(self, maps: Sequence[Tensor], *, hook_point: str = NECK_MAPS) -> Iterator[None]:
        """Hands them to the decoder; backbone and encoder do not run."""
        _require_encoder(hook_point)
        outputs = transformers_of(self.name).modeling_outputs

        def give(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            # Of `inputs_embeds` only the number of images is taken.
            return args, kwargs | {
                'inputs_embeds': maps[0],
                'encoder_outputs': outputs.BaseModelOutput(last_hidden_state=list(maps)),
            }

        handle = self.module.get_submodule('model').register_forward_pre_hook(give, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def maps(self, images: Tensor, *, hook_point: str = NECK_MAPS) -> Sequence[Tensor]:
        """The encoder's maps, without running the decoder."""
        _require_encoder(hook_point)
        return encoder_maps(self.module, images)

    def probed_levels(self) -> tuple[Level, ...]:
        """The levels of its maps, found in eval mode at a size of its input."""
        size, training = probe_size(self.preprocessing.geometry), self.module.training
        _require_divisible([size], strides=self._config.feat_strides, name=self.name)
        self.module.eval()
        try:
            return levels_of(self.maps, input_size=size, device=self.device)
        except (MtpdError, torch.OutOfMemoryError):
            raise
        # Settings that contradict each other show here at the latest, by any error.
        except Exception as error:
            raise InputError(
                f'{self.name}: fails on an input of {size[0]} x {size[1]} px (height x width): {one_line(error)}; '
                'check the settings of `model` and its config'
            ) from error
        finally:
            self.module.train(training)

    def exportable(self) -> Exportable:
        """All of its families."""
        return HfExportable(self.module)

    def require_inputs(self, padded: Collection[Size]) -> None:
        """Refuses sides that its pyramid cannot halve, and too many queries for the smallest input."""
        sizes = sorted(set(padded))
        strides = [level.stride for level in self.levels] or list(self._config.feat_strides)
        _require_divisible(sizes, strides=strides, name=self.name)
        cells = [sum(math.prod(-(-side // stride) for side in size) for stride in strides) for size in sizes]
        least, num_queries = min(cells, default=math.inf), self._config.num_queries
        if num_queries > least:
            raise InputError(
                f'{self.name} selects its {num_queries} queries from the cells of its maps, but the smallest input has '
                f'only {least} of them; set `model: {{num_queries: {least}}}` or fewer, or use larger inputs '
                '(data.geometry)'
            )

    def save(self, folder: Path, *, classes: Sequence[str]) -> None:
        """Writes `hf`, a folder that transformers loads with `from_pretrained`, image processor included."""
        if len(classes) != self._config.num_labels:
            raise InputError(f'{self.name}: has {self._config.num_labels} classes, but {len(classes)} names are given')
        saved, model = folder / SAVED_FOLDER, self._module
        own, model.config = model.config, with_classes(model.config, classes)
        try:
            with quiet():
                model.save_pretrained(saved)
        except OSError as error:
            raise unwritable(saved, error) from error
        finally:
            model.config = own
        values, difference = write_preprocessor(self.preprocessing)
        if values is None:
            logger.warning('note: %s: has no %s, since %s; see student.json', saved, PREPROCESSOR_FILE, difference)
            (saved / PREPROCESSOR_FILE).unlink(missing_ok=True)
            return
        if difference is not None:
            logger.warning('note: %s: %s', saved / PREPROCESSOR_FILE, difference)
        write_output(saved / PREPROCESSOR_FILE, json.dumps(values, indent=1).encode() + b'\n')

    @property
    def _module(self) -> Any:
        return self.module

    @property
    def _config(self) -> Any:
        return self._module.config


def build_network(config: Any, *, name: str) -> nn.Module:
    """The network of a config on the CPU, in training mode, with random weights."""
    network_class = getattr(transformers_of(name), MODELS[config.model_type][1])
    try:
        with quiet():
            module: nn.Module = network_class(config)
    # Settings that contradict each other raise any error.
    except Exception as error:
        raise InputError(f'{name}: cannot be built from its config: {one_line(error)}') from error
    for part, one in module.named_modules():
        # transformers draws these scales around 0 in RT-DETR's encoder; its authors, as PyTorch, begin with 1.
        if isinstance(one, nn.BatchNorm2d) and not part.startswith(HfDetector.backbone):
            nn.init.ones_(one.weight)
    decoder = module.get_submodule('model.decoder')
    for constant, value in [*decoder.named_parameters(recurse=False)]:
        # D-FINE keeps two constants as parameters without gradient, which look like layers that are frozen.
        if not value.requires_grad:
            delattr(decoder, constant)
            decoder.register_buffer(constant, value.data)
    return module.train()


def encoder_maps(module: nn.Module, images: Tensor) -> list[Tensor]:
    """The maps of the hybrid encoder."""
    model: Any = module.get_submodule('model')
    # As the network does; the mask of padded pixels has no effect in it.
    mask = torch.ones((len(images), *images.shape[2:]), device=images.device)
    features = model.backbone(images, mask)
    projected = [project(features[level][0]) for level, project in enumerate(model.encoder_input_proj)]
    return list(model.encoder(projected).last_hidden_state)


def _require_divisible(sizes: Collection[Size], *, strides: Sequence[int], name: str) -> None:
    """Refuses inputs (height, width) px whose maps have not half the sides of the ones before."""
    for height, width in sizes:
        if height % max(strides) or width % max(strides):
            raise InputError(
                f'{name}: takes inputs whose sides are multiples of {max(strides)} px, not {height} x {width} px; set '
                f'`data: {{geometry: {{pad_divisor: {max(strides)}}}}}`, or with a cache extract it with --pad-divisor'
            )


def _labels(sample: Sample, images: Tensor) -> dict[str, Tensor]:
    """The objects of an image as transformers takes them: centres and sizes, relative to the padded input."""
    target = sample.objects.to(images.device)
    height, width = images.shape[2:]
    corners = target.boxes / target.boxes.new_tensor([width, height, width, height])
    first, second = corners[:, :2], corners[:, 2:]
    return {'class_labels': target.labels, 'boxes': torch.cat([(first + second) / 2, second - first], dim=-1)}


def _require_encoder(hook_point: str) -> None:
    if hook_point != NECK_MAPS:
        raise InputError(f'hook point {hook_point}: detectors of transformers have none but {NECK_MAPS}')
