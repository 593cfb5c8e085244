"""The result of one trial, and what all kinds of trials ask of a cache at the end."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torture.judge import judge
from torture.setting import Setting, contents, extract

End = Literal['survived', 'lost', 'failed']


@dataclass(frozen=True)
class Trial:
    """What became of one cache.

    Attributes:
        kind: the kind of harm, a row of the table.
        end: `survived`: every map can be read and is right; `lost`: some are refused, none is wrong; `failed`: a wrong
            map, an error of another kind, a crash, a hang, much memory, or a resume that ends in another cache.
        note: what happened, for a failure.
    """

    kind: str
    end: End
    note: str = ''


def judged(kind: str, root: Path, setting: Setting, *, what: str) -> Trial:
    """A trial that ends with reading everything."""
    verdict = judge(root, setting.truth)
    if verdict.wrong:
        return Trial(kind, 'failed', f'{what}: {verdict.wrong[0]} (and {len(verdict.wrong) - 1} more)')
    return Trial(kind, 'survived' if verdict.is_right else 'lost', f'{what}: {verdict.refusal}')


def resumed(kind: str, root: Path, setting: Setting, *, what: str) -> Trial:
    """A trial that ends with the same command once more, which must give the undisturbed cache. Deletes it then."""
    before = judge(root, setting.truth)
    is_finished = (root / 'manifest.json').exists()
    if before.wrong or is_finished != before.is_right:
        return Trial(kind, 'failed', f'{what}, before the resume: {before}')
    code, line = extract(setting.subject, root)
    if code != 0:
        return Trial(kind, 'failed', f'{what}: the resume ended with {code}: {line}')
    if contents(root) != contents(setting.reference['mine']):
        return Trial(kind, 'failed', f'{what}: the resumed cache has other files')
    trial = judged(kind, root, setting, what=what)
    if trial.end == 'survived':
        shutil.rmtree(root)
        return trial
    return Trial(kind, 'failed', trial.note)
