"""Reading all of a cache that may be damaged, in a process of limited memory and time."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

import mtpd.cache
from mtpd.cache import CacheReader
from mtpd.errors import MtpdError
from mtpd.system.files import canonical_json
from stress.processes import ProcessDiedError, in_limits

# What is asked for, of which image, which tensor of it: ('plain', 7, 'p3'), ('rois', 7, 'boxes'), ('weights', None, ..)
Key = tuple[str, int | None, str]
Truth = dict[Key, torch.Tensor]
MEMORY = 512 * 2**20  # bytes beyond what the process has


@dataclass
class Verdict:
    """The result of reading a cache.

    Attributes:
        num_right: reads that gave exactly the original values.
        num_refused: reads that ended in an error of ours in one line that names the cache.
        wrong: what else happened; nothing may.
        refusal: the first refusal's message.
    """

    num_right: int = 0
    num_refused: int = 0
    wrong: list[str] = field(default_factory=list)
    refusal: str = ''

    @property
    def is_right(self) -> bool:
        """Whether every read gave the original values."""
        return not self.wrong and not self.num_refused


def read_all(root: Path) -> Truth:
    """All that a sound cache holds."""
    cache = mtpd.cache.open(root)
    asked: list[tuple[str, int | None]] = [(view, image_id) for image_id in cache.image_ids for view in cache.views]
    asked.append(('weights', None))
    if cache.manifest.description.rois is not None:
        asked += [('rois', image_id) for image_id in cache.image_ids]
        asked.append(('roi head', None))
    return {(kind, image, name): one for kind, image in asked for name, one in _tensors(cache, kind, image).items()}


def _tensors(cache: CacheReader, kind: str, image_id: int | None, level: str | None = None) -> dict[str, torch.Tensor]:
    """What one read gives; of maps, `level` asks for one alone."""
    if kind == 'weights':
        return cache.teacher_weights()
    if kind == 'roi head':
        head = cache.roi_head()
        record = torch.frombuffer(bytearray(canonical_json(head.record.model_dump(mode='json'))), dtype=torch.uint8)
        return head.state_dict() | {'record': record}
    assert image_id is not None
    if kind == 'rois':
        return cache.rois(image_id)._asdict()
    return cache.read(image_id, kind, levels=None if level is None else [level])  # type: ignore[arg-type]


def judge(root: Path, truth: Truth) -> Verdict:
    """Reads everything, each tensor by itself, and compares it with `read_all` of the undamaged cache."""
    try:
        return in_limits(partial(_judge_here, root, truth), memory=MEMORY)
    except ProcessDiedError as error:
        return Verdict(wrong=[str(error)])


def _judge_here(root: Path, truth: Truth) -> Verdict:
    verdict = Verdict()
    try:
        cache = mtpd.cache.open(root)
    except BaseException as error:
        _count_error(verdict, root, error, num_reads=len(truth))
        return verdict
    if set(cache.image_ids) != {image_id for _, image_id, _ in truth if image_id is not None}:
        verdict.wrong.append('other images')
    if (cache.manifest.description.rois is None) == any(kind == 'rois' for kind, _, _ in truth):
        verdict.wrong.append('other things stored of the teacher')
    whole: dict[str, dict[str, torch.Tensor]] = {}
    for (kind, image_id, name), values in truth.items():
        try:
            if image_id is not None:
                found = _tensors(cache, kind, image_id, name)
            else:  # one file, and large: once is enough
                found = whole[kind] = whole[kind] if kind in whole else _tensors(cache, kind, None)
        except BaseException as error:
            _count_error(verdict, root, error, num_reads=1)
            continue
        if name in found and torch.equal(found[name], values):
            verdict.num_right += 1
        else:
            verdict.wrong.append(f'another {name} of {kind}, image {image_id}')
    return verdict


def _count_error(verdict: Verdict, root: Path, error: BaseException, *, num_reads: int) -> None:
    text = str(error)
    if isinstance(error, MtpdError) and str(root) in text and '\n' not in text:
        verdict.num_refused += num_reads
        verdict.refusal = verdict.refusal or text
    else:
        verdict.wrong.append(f'{type(error).__name__}: {text[:200]}')
