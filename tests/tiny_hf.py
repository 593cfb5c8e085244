"""Small detectors of transformers with random weights, as folders that `save_pretrained` writes."""

import importlib
from pathlib import Path
from typing import Any

import torch

from mtpd.detectors.of_hf.model_config import MODELS

CLASSES = ('cat', 'dog', 'cow')
SIZE = 96  # px

transformers: Any = importlib.import_module('transformers')


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A network of few channels."""
    settings: dict[str, Any] = dict(
        encoder_in_channels=[8, 16, 16], encoder_hidden_dim=16, d_model=16, decoder_in_channels=[16] * 3,
        encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
        decoder_layers=2, num_queries=10, num_denoising=8, hidden_expansion=0.5,
        id2label=dict(enumerate(CLASSES)), label2id={name: number for number, name in enumerate(CLASSES)},
    )  # fmt: skip
    if model_type == 'd_fine':
        backbone = transformers.HGNetV2Config(
            stem_channels=[3, 8, 8], hidden_sizes=[8, 8, 16, 16], stage_in_channels=[8, 8, 8, 16],
            stage_mid_channels=[8] * 4, stage_out_channels=[8, 8, 16, 16], stage_num_blocks=[1] * 4,
            stage_numb_of_layers=[1] * 4, embedding_size=8, depths=[1] * 4, out_indices=[2, 3, 4],
        )  # fmt: skip
        settings |= {'decoder_n_points': [2, 2, 2], 'lqe_hidden_dim': 8}
    else:
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type='basic', out_indices=[2, 3, 4]
        )
    return getattr(transformers, MODELS[model_type][0])(backbone_config=backbone, **settings | changes)


def make_folder(place: Path, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """What `save_pretrained` writes: config, weights, preprocessor."""
    torch.manual_seed(seed)
    model = getattr(transformers, MODELS[model_type][1])(tiny_config(model_type, **changes))
    with torch.no_grad():
        # Statistics and scales as after training, so that predictions differ from place to place.
        for name, value in model.named_buffers():
            if name.endswith('running_mean'):
                value.normal_(0, 0.1)
        for one in model.modules():
            if isinstance(one, torch.nn.BatchNorm2d):
                one.weight.uniform_(0.5, 1.5)
            elif isinstance(one, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(one.weight)
        heads = (*model.model.decoder.bbox_embed, *model.model.decoder.class_embed, model.model.enc_score_head)
        for head in heads:
            for value in head.parameters():
                value.add_(0.3 * torch.randn_like(value))
    model.save_pretrained(place)
    size = {'height': SIZE, 'width': SIZE}
    transformers.RTDetrImageProcessor(size=size).save_pretrained(place)
    return place
