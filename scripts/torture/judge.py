"""Reading all of a cache that may be damaged, in a process that may neither hang nor take much memory."""

import multiprocessing
import resource
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

import mtpd.cache
from mtpd.errors import MtpdError

# Image, view and level; the teacher's weights stand under image -1.
Maps = dict[tuple[int, str, str], torch.Tensor]
TIMEOUT = 60  # seconds
MEMORY = 512 * 2**20  # bytes beyond what the process has


@dataclass
class Verdict:
    """What reading a cache gave.

    Attributes:
        num_right: reads that gave just the original values.
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


def read_maps(root: Path) -> Maps:
    """All maps of a sound cache."""
    cache = mtpd.cache.open(root)
    keys = [(image_id, view) for image_id in cache.image_ids for view in cache.views]
    maps: Maps = {(*key, name): values for key in keys for name, values in cache.read(*key).items()}
    return maps | {(-1, 'teacher', name): values for name, values in cache.teacher_weights().items()}


def judge(root: Path, truth: Maps) -> Verdict:
    """Reads everything, each level by itself, in a process of its own."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=_judge_here, args=(root, truth, sender))
    process.start()
    sender.close()
    try:
        verdict: Verdict = receiver.recv()
    except EOFError:
        process.join()
        verdict = Verdict(wrong=[f'reading ended with exit code {process.exitcode}'])
    process.join()
    process.close()
    receiver.close()
    return verdict


def _judge_here(root: Path, truth: Maps, sender: Connection) -> None:
    torch.set_num_threads(1)
    signal.alarm(TIMEOUT)
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    verdict = Verdict()
    try:
        cache = mtpd.cache.open(root)
    except BaseException as error:
        _count_error(verdict, root, error, num_reads=len(truth))
        sender.send(verdict)
        return
    if set(cache.image_ids) != {image_id for image_id, _, _ in truth if image_id >= 0}:
        verdict.wrong.append('other images')
    weights: dict[str, torch.Tensor] | None = None
    for (image_id, view, name), values in truth.items():
        try:
            if image_id >= 0:
                found = cache.read(image_id, view, levels=[name])[name]  # type: ignore[arg-type]
            else:
                weights = cache.teacher_weights() if weights is None else weights
                found = weights[name]
        except BaseException as error:
            _count_error(verdict, root, error, num_reads=1)
            continue
        if torch.equal(found, values):
            verdict.num_right += 1
        else:
            verdict.wrong.append(f'another map for image {image_id}, {view}, {name}')
    sender.send(verdict)


def _count_error(verdict: Verdict, root: Path, error: BaseException, *, num_reads: int) -> None:
    text = str(error)
    if isinstance(error, MtpdError) and str(root) in text and '\n' not in text:
        verdict.num_refused += num_reads
        verdict.refusal = verdict.refusal or text
    else:
        verdict.wrong.append(f'{type(error).__name__}: {text[:200]}')
