"""Which models of mmdet's zoo the tests try: families and variants as students, one config each."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


def selected(every: Sequence[str], *default: str) -> Sequence[str]:
    """Those that MTPD_STRESS_ZOO names, separated by commas, or `all` of them."""
    named = os.environ.get('MTPD_STRESS_ZOO', ','.join(default))
    return every if named == 'all' else [one for one in every if one in named.split(',')]


@dataclass(frozen=True)
class Family:
    """One student of the sweep.

    Attributes:
        config: name in the zoo.
        changes: the stage's `model:`, mostly what makes the network lighter.
        side: longer side of the images in px.
        pad_divisor: the padded sides are multiples of this many px.
        num_classes: of the images.
        keep_ratio: False resizes to a square whatever the image.
        refusal: what the message says when the project refuses the family; None: it must work.
        plain_works: whether only distilling is refused.
    """

    config: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    side: int = 128
    pad_divisor: int = 32
    num_classes: int = 2
    keep_ratio: bool = True
    refusal: str | None = None
    plain_works: bool = False


# Deeper than an image of 128 px has cells to choose from.
_QUERIES = {'num_queries': 60}
# Without them the maps of these networks, with random weights, overflow.
_BATCH_STATISTICS = {'backbone.norm_eval': False, 'neck.rfp_backbone.norm_eval': False}
_NO_NECK = 'has no neck'
_STUFF = 'htc-without-semantic'
_UNBORDERED = 'centernet-update'
_INSTANCES = {
    'panoptic_head.num_stuff_classes': 0,
    'panoptic_fusion_head.num_stuff_classes': 0,
    'test_cfg.panoptic_on': False,
    'test_cfg.instance_on': True,
}

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        'retinanet': Family('retinanet_r18_fpn_1x_coco'),
        'fcos': Family('fcos_r50-caffe_fpn_gn-head_1x_coco'),
        'atss': Family('atss_r50_fpn_1x_coco'),
        'gfl': Family('gfl_r50_fpn_1x_coco'),
        'vfnet': Family('vfnet_r50_fpn_1x_coco'),
        'autoassign': Family('autoassign_r50-caffe_fpn_1x_coco'),
        'ddod': Family('ddod_r50_fpn_1x_coco'),
        'free_anchor': Family('freeanchor_r50_fpn_1x_coco'),
        'foveabox': Family('fovea_r50_fpn_4xb4-1x_coco'),
        'fsaf': Family('fsaf_r50_fpn_1x_coco'),
        'reppoints': Family('reppoints-moment_r50_fpn-gn_head-gn_1x_coco'),
        'yolox': Family('yolox_tiny_8xb8-300e_coco'),
        'rtmdet': Family('rtmdet_tiny_8xb32-300e_coco'),
        'yolof': Family('yolof_r50-c5_8xb8-1x_coco'),
        'yolov3': Family('yolov3_d53_8xb8-320-273e_coco'),
        'faster_rcnn': Family('faster-rcnn_r50_fpn_1x_coco'),
        'mask_rcnn': Family('mask-rcnn_r50_fpn_1x_coco'),
        'cascade_rcnn': Family('cascade-rcnn_r50_fpn_1x_coco'),
        'cascade_mask_rcnn': Family('cascade-mask-rcnn_r50_fpn_1x_coco'),
        'htc_without_semantic': Family('htc-without-semantic_r50_fpn_1x_coco'),
        'detectors': Family('detectors_cascade-rcnn_r50_1x_coco', _BATCH_STATISTICS),
        'dynamic_rcnn': Family('dynamic-rcnn_r50_fpn_1x_coco'),
        'libra_rcnn': Family('libra-faster-rcnn_r50_fpn_1x_coco'),
        'grid_rcnn': Family('grid-rcnn_r50_fpn_gn-head_1x_coco'),
        'double_heads': Family('dh-faster-rcnn_r50_fpn_1x_coco'),
        'sabl': Family('sabl-faster-rcnn_r50_fpn_1x_coco'),
        'ms_rcnn': Family('ms-rcnn_r50_fpn_1x_coco'),
        'point_rend': Family('point-rend_r50-caffe_fpn_ms-1x_coco'),
        'carafe': Family('faster-rcnn_r50_fpn-carafe_1x_coco'),
        'pafpn': Family('faster-rcnn_r50_pafpn_1x_coco'),
        'dcn': Family('faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco'),
        'dcnv2': Family('faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco'),
        'regnet': Family('retinanet_regnetx-800MF_fpn_1x_coco'),
        'resnest': Family('faster-rcnn_s50_fpn_syncbn-backbone+head_ms-range-1x_coco'),
        'res2net': Family('faster-rcnn_res2net-101_fpn_2x_coco', {'backbone.depth': 50}),
        'swin': Family('retinanet_swin-t-p4-w7_fpn_1x_coco'),
        'efficientnet': Family('retinanet_effb3_fpn_8xb4-crop896-1x_coco'),
        'mobilenet': Family('yolov3_mobilenetv2_8xb24-320-300e_coco'),
        'solo': Family('solo_r50_fpn_1x_coco'),
        'solov2': Family('solov2-light_r18_fpn_ms-3x_coco'),
        'condinst': Family('condinst_r50_fpn_ms-poly-90k_coco_instance'),
        'yolact': Family('yolact_r50_1xb8-55e_coco', keep_ratio=False),
        'detr': Family('detr_r18_8xb2-500e_coco'),
        'deformable_detr': Family('deformable-detr_r50_16xb2-50e_coco'),
        'conditional_detr': Family('conditional-detr_r50_8xb2-50e_coco'),
        'dab_detr': Family('dab-detr_r50_8xb2-50e_coco'),
        'dino': Family('dino-4scale_r50_8xb2-12e_coco', _QUERIES),
        'sparse_rcnn': Family('sparse-rcnn_r50_fpn_1x_coco'),
        'dyhead': Family('atss_r50_fpn_dyhead_1x_coco'),
        'seesaw_loss': Family('mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1'),
        'ghm': Family('retinanet_r50_fpn_ghm-1x_coco'),
        'pisa': Family('faster-rcnn_r50_fpn_pisa_1x_coco'),
        'gn': Family('mask-rcnn_r50_fpn_gn-all_2x_coco'),
        'gn+ws': Family('faster-rcnn_r50_fpn_gn-ws-all_1x_coco'),
        'nas_fcos': Family('nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco'),
        'groie': Family('faste-rcnn_r50_fpn_groie_1x_coco'),
        'gcnet': Family('mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco'),
        'empirical_attention': Family('faster-rcnn_r50-attn0010_fpn_1x_coco'),
        'centernet_update': Family('centernet-update_r50-caffe_fpn_ms-1x_coco'),
        'cascade_rpn': Family('cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco'),
        'instaboost': Family('mask-rcnn_r50_fpn_instaboost-4x_coco'),
        'resnet_strikes_back': Family('retinanet_r50-rsb-pre_fpn_1x_coco'),
        'selfsup_pretrain': Family('mask-rcnn_r50-swav-pre_fpn_1x_coco'),
        'rpn': Family('rpn_r50_fpn_1x_coco', num_classes=1),
        'boxinst': Family('boxinst_r50_fpn_ms-90k_coco', refusal='condinst'),
        'convnext': Family('mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco', refusal='mmpretrain'),
        'glip': Family('glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365', refusal='no text'),
        'tridentnet': Family('tridentnet_r50-caffe_1x_coco', refusal=_NO_NECK, plain_works=True),
        'faster_rcnn_c4': Family('faster-rcnn_r50-caffe-c4_ms-1x_coco', refusal=_NO_NECK, plain_works=True),
        'faster_rcnn_dc5': Family('faster-rcnn_r50-caffe-dc5_1x_coco', refusal=_NO_NECK, plain_works=True),
        'centernet': Family('centernet_r18_8xb16-crop512-140e_coco', refusal=_UNBORDERED),
        'cornernet': Family('cornernet_hourglass104_8xb6-210e-mstest_coco', refusal=_UNBORDERED),
        'centripetalnet': Family('centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco', refusal=_UNBORDERED),
        'mask2former': Family('mask2former_r50_8xb2-lsj-50e_coco', refusal=_NO_NECK, plain_works=True),
        # As the refusal of the panoptic variant says.
        'maskformer': Family('maskformer_r50_ms-16xb1-75e_coco', _INSTANCES, refusal=_NO_NECK, plain_works=True),
        'nas_fpn': Family('retinanet_r50_nasfpn_crop640-50e_coco', pad_divisor=128),
        'hrnet': Family('faster-rcnn_hrnetv2p-w18-1x_coco', {'backbone.norm_eval': False}),
        'tood': Family('tood_r50_fpn_1x_coco'),
        'paa': Family('paa_r50_fpn_1x_coco', refusal='scikit-learn'),
        'lad': Family('lad_r50-paa-r101_fpn_2xb8_coco_1x', refusal='paa'),
        'rtmdet_ins': Family('rtmdet-ins_tiny_8xb32-300e_coco'),
        'htc': Family('htc_r50_fpn_1x_coco', refusal=_STUFF),
        'scnet': Family('scnet_r50_fpn_1x_coco', refusal=_STUFF),
        'panoptic_fpn': Family('panoptic-fpn_r50_fpn_1x_coco', refusal='stuff'),
        'ssd': Family('ssd300_coco', side=300, keep_ratio=False, pad_divisor=1),
        'ssdlite': Family('ssdlite_mobilenetv2-scratch_8xb24-600e_coco', side=320, keep_ratio=False),
        'ga_retinanet': Family('ga-retinanet_r50_fpn_1x_coco'),
        'ga_faster_rcnn': Family('ga-faster-rcnn_r50_fpn_1x_coco'),
        'queryinst': Family('queryinst_r50_fpn_1x_coco', {'rpn_head.num_proposals': 20}),
        'crowddet': Family('crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman', num_classes=1, pad_divisor=64),
        'grounding_dino': Family('grounding_dino_r50_scratch_8xb2_1x_coco', refusal='no text'),
        'fpg': Family('retinanet_r50_fpg-chn128_crop640_50e_coco', pad_divisor=128),
        'pvt': Family('retinanet_pvt-t_fpn_1x_coco'),
        'ld': Family('ld_r18-gflv1-r101_fpn_1x_coco', refusal='gfl'),
        'ddq': Family('ddq-detr-4scale_r50_8xb2-12e_coco', _QUERIES),
        'strong_baselines': Family('mask-rcnn_r50_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-100e_coco'),
    }
)
