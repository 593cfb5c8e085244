"""The model zoo that the mmdet wheel carries: names, configs and addresses of weights."""

import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote

import yaml

from mtpd.errors import InputError, UnavailableError

# Short names of the teachers that MTPD, MGD and TAR used, and of strong or common ones.
ALIASES: Mapping[str, str] = {
    'r18': 'retinanet_r18_fpn_1x_coco',
    'r50': 'retinanet_r50_fpn_1x_coco',
    'r101': 'retinanet_r101_fpn_ms-640-800-3x_coco',
    'x101': 'retinanet_x101-64x4d_fpn_ms-640-800-3x_coco',
    'faster_r50': 'faster-rcnn_r50_fpn_1x_coco',
    'faster_r101': 'faster-rcnn_r101_fpn_2x_coco',
    'faster_x101': 'faster-rcnn_x101-64x4d_fpn_1x_coco',
    'mask_r50': 'mask-rcnn_r50_fpn_1x_coco',
    'mask_r101': 'mask-rcnn_r101_fpn_2x_coco',
    'swin_t': 'mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco',
    'swin_s': 'mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco',
    'swin_l': 'dino-5scale_swin-l_8xb2-36e_coco',
    'cascade_r50': 'cascade-mask-rcnn_r50_fpn_mstrain_3x_coco',
    'cascade_r101': 'cascade-mask-rcnn_r101_fpn_ms-3x_coco',
    'cascade_x101': 'cascade-mask-rcnn_x101-64x4d_fpn_ms-3x_coco',
    'cascade_r50_dcn': 'cascade-mask-rcnn_r50_fpn_dconv_c3-c5_1x_coco',
    'cascade_x101_dcn': 'cascade-mask-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco',
    'htc': 'htc_x101-64x4d-dconv-c3-c5_fpn_ms-400-1400-16xb1-20e_coco',
    'htc_r50': 'htc_r50_fpn_20e_coco',
    'htc_r101': 'htc_r101_fpn_20e_coco',
    'detectors': 'detectors_htc-r50_1x_coco',
    'detectors_cascade': 'detectors_cascade-rcnn_r50_1x_coco',
    'reppoints_r50': 'reppoints-moment_r50_fpn-gn_head-gn_1x_coco',
    'reppoints_r101': 'reppoints-moment_r101_fpn-gn_head-gn_2x_coco',
    'reppoints_x101_dcn': 'reppoints-moment_x101-dconv-c3-c5_fpn-gn_head-gn_2x_coco',
    'fcos_r50': 'fcos_r50-caffe_fpn_gn-head_ms-640-800-2x_coco',
    'fcos_r101': 'fcos_r101-caffe_fpn_gn-head_ms-640-800-2x_coco',
    'atss_r50': 'atss_r50_fpn_1x_coco',
    'atss_r101': 'atss_r101_fpn_1x_coco',
    'gfl_r50': 'gfl_r50_fpn_1x_coco',
    'gfl_r101': 'gfl_r101_fpn_ms-2x_coco',
    'gfl_x101_dcn': 'gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco',
    'tood_r101': 'tood_r101_fpn_ms-2x_coco',
    'vfnet_x101_dcn': 'vfnet_x101-64x4d-mdconv-c3-c5_fpn_ms-2x_coco',
    'rtmdet_s': 'rtmdet_s_8xb32-300e_coco',
    'rtmdet_m': 'rtmdet_m_8xb32-300e_coco',
    'rtmdet_l': 'rtmdet_l_8xb32-300e_coco',
    'rtmdet_x': 'rtmdet_x_8xb32-300e_coco',
    'yolox_s': 'yolox_s_8x8_300e_coco',
    'yolox_l': 'yolox_l_8x8_300e_coco',
    'yolox_x': 'yolox_x_8x8_300e_coco',
    'dino_r50': 'dino-4scale_r50_8xb2-12e_coco',
    'ddq_swin_l': 'ddq-detr-4scale_swinl_8xb2-30e_coco',
    'mask2former_swin_s': 'mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco',
}


@dataclass(frozen=True)
class ZooModel:
    """One model of the zoo."""

    name: str  # as its metafile calls it; the config's stem where no metafile lists it
    config: Path
    weights: str | None = None  # address of its checkpoint
    on_coco: bool = False  # whether it was trained to detect or segment the objects of COCO


def configs_folder() -> Path:
    """The folder of configs inside the installed mmdet."""
    spec = importlib.util.find_spec('mmdet')
    if spec is None or spec.origin is None:
        raise UnavailableError('mmdet is not installed; run: pip install "mmdet>=3.3,<3.4"')
    folder = Path(spec.origin).parent / '.mim' / 'configs'
    if not folder.is_dir():
        raise UnavailableError(f'mmdet has no configs in {folder}; install it from its wheel: pip install mmdet')
    return folder


@functools.cache
def models() -> Mapping[str, ZooModel]:
    """All models that the metafiles list, by name."""
    found: dict[str, ZooModel] = {}
    for metafile in sorted(configs_folder().glob('*/metafile.yml')):
        content = yaml.load(metafile.read_text(encoding='utf-8'), Loader=yaml.CSafeLoader)
        # objects365 has a bare list.
        for entry in content if isinstance(content, list) else content.get('Models') or []:
            # Paths may be quoted as in URLs (`gn%2Bws`) or name another folder, but the file is beside its metafile.
            config = metafile.parent / Path(unquote(entry['Config'])).name
            # Trackers list several files of weights; none of them is a detector's checkpoint by itself.
            weights = entry.get('Weights') if isinstance(entry.get('Weights'), str) else None
            tasks = {result.get('Task') for result in entry['Results'] if result.get('Dataset') == 'COCO'}
            on_coco = not tasks.isdisjoint({'Object Detection', 'Instance Segmentation'})
            found.setdefault(entry['Name'], ZooModel(entry['Name'], config, weights, on_coco))
    return found


def find_model(reference: str) -> ZooModel | None:
    """The zoo model of that name, alias or config name (without `.py`); None if there is none."""
    name = ALIASES.get(reference, reference)
    by_stem = (model for model in models().values() if model.config.stem == name)
    return models().get(name) or next(by_stem, None) or _unlisted_configs().get(name)


def resolve(reference: str) -> ZooModel:
    """Like `find_model`, for a name that must exist: the error names similar ones."""
    model = find_model(reference)
    if model is None:
        known = [*ALIASES, *models(), *_unlisted_configs()]
        close = get_close_matches(reference, known, n=3, cutoff=0.5)
        hint = f'did you mean {", ".join(close)}?' if close else f'aliases are {", ".join(ALIASES)}'
        raise InputError(f'{reference!r} is not a model of the mmdet zoo, an alias or a path to a .py config; {hint}')
    return model


@functools.cache
def _unlisted_configs() -> Mapping[str, ZooModel]:
    """Configs of the wheel that no metafile lists (they have no published weights), by stem."""
    listed = {model.config for model in models().values()}
    paths = [path for path in sorted(configs_folder().glob('[!_]*/*.py')) if path not in listed]
    return {path.stem: ZooModel(path.stem, path) for path in paths}
