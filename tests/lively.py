"""Detectors with random weights that find many different objects, as trained ones do."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from mtpd.detectors.detector import Detector
from mtpd.detectors.samples import Sample

# The layers whose outputs are class logits.
_CLASSES = re.compile(
    r'(retina_cls|conv_cls|atss_cls|gfl_cls|rtm_cls\.?\d*|multi_level_conv_cls\.\d+|reppoints_cls_out|rpn_cls|fc_cls|'
    r'cls_logits|cls_score|class_embed\.\d+|enc_score_head|classification_head\.module_list\.\d+(\.\d+)*)$'
)


def enliven(detector: Detector, sample: Sample) -> Detector:
    """Scales each layer, in the order in which they run, so that its output in `sample` has a spread of 1.

    Class logits spread wider around a mean that leaves most places empty, boxes narrower.
    """
    done: set[str] = set()

    def scale(name: str, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        spread = float(output.std()) if output.numel() > 1 else 0.0
        if name in done or spread < 1e-8:
            return None
        done.add(name)
        is_classes = _CLASSES.search(name) is not None
        is_box = re.search('reg|bbox', name) is not None
        layer.weight.mul_((1.5 if is_classes else 0.3 if is_box else 1.0) / spread)
        if layer.bias is not None:
            layer.bias.fill_(-2.0 if is_classes and not re.search('fc_cls|predictor', name) else 0.0)
        again: Tensor = layer.forward(inputs[0])
        return again

    torch.manual_seed(0)
    module = detector.module.eval().requires_grad_(False)
    layers = {name: one for name, one in module.named_modules() if type(one) in (nn.Conv2d, nn.Linear)}
    handles = [
        one.register_forward_hook(lambda layer, inputs, output, name=name: scale(name, layer, inputs, output))
        for name, one in layers.items()
    ]
    with torch.no_grad():
        detector.find([sample])
    for handle in handles:
        handle.remove()
    return detector
