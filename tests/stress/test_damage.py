"""Random damage to finished caches, to unfinished ones that are resumed, and to parts that are merged."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from stress.damages import DAMAGES, JOURNAL_DAMAGES, ROI_DAMAGES, contents, copy_unfinished
from stress.extraction import Setting, ended, num_committed, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning'),
]


def test_a_finished_cache(setting: Setting, rounds: int) -> None:
    """Every read is right or refused."""
    has_rois = any(kind == 'rois' for kind, _, _ in setting.truth)
    for damage in (*DAMAGES, *(ROI_DAMAGES if has_rois else ())):
        ends: Counter[str] = Counter()
        for _ in range(rounds):
            root = Path(shutil.copytree(setting.reference['mine'], setting.extraction.fresh()))
            what = damage(root, setting.random, setting.others)
            ends['right' if setting.judge(root, what).is_right else 'refused'] += 1
            shutil.rmtree(root)
        print(damage.__name__, dict(ends))


@pytest.fixture(scope='module')
def partial(setting: Setting) -> Path:
    """A cache with some of its shards."""
    return unfinished(setting, 'mine', num_groups=4)


def unfinished(setting: Setting, teacher: str, *, num_groups: int) -> Path:
    out = setting.extraction.fresh()
    with setting.extraction.extracting(out, teacher=teacher) as run:
        wait_until(lambda: num_committed(out) >= num_groups, run)
        assert run.kill(), 'the extraction was too fast to be killed in the middle'
    return out


def damage_unfinished(setting: Setting, root: Path, number: int) -> str:
    """One kind of damage after another."""
    if damages := JOURNAL_DAMAGES[number % (len(JOURNAL_DAMAGES) + 1) :]:
        return f'{damages[0].__name__}: {damages[0](root, setting.random, setting.others)}'
    source = unfinished(setting, setting.random.choice(['shifted', 'other']), num_groups=5)
    what = copy_unfinished(source, root, setting.random)
    shutil.rmtree(source)
    return what


def test_an_unfinished_cache(setting: Setting, rounds: int, partial: Path) -> None:
    """What counts as committed is the journal's word; the resume may refuse, and reads may."""
    for number in range((len(JOURNAL_DAMAGES) + 1) * rounds):
        root = Path(shutil.copytree(partial, setting.extraction.fresh()))
        what = damage_unfinished(setting, root, number)
        code, line = setting.extraction.extract(root)
        require_one_line(code, line, [root], what)
        print(what, 'refused' if code or not setting.judge(root, what).is_right else 'right')
        shutil.rmtree(root)


def require_one_line(code: int | None, line: str, roots: list[Path], what: str) -> None:
    """It succeeded, or failed with a line that names one of the folders."""
    assert code in (0, 1), f'{what}: ended with {code}: {line}'
    if code == 1:
        assert any(str(root) in line for root in roots), f'{what}: {line}'
        assert 'this is a bug' not in line, f'{what}: {line}'


def test_a_part_that_is_merged(setting: Setting, rounds: int) -> None:
    """A merge verifies all that it takes: it gives the undisturbed maps, or one line; it never changes the parts."""
    parts = [setting.extraction.fresh() for _ in range(2)]
    for index, part in enumerate(parts, start=1):
        code, line = setting.extraction.extract(part, '--part', f'{index}/2')
        assert code == 0, line
    before = [contents(part) for part in parts]
    for _ in range(rounds):
        copies = [Path(shutil.copytree(part, setting.extraction.fresh())) for part in parts]
        number = setting.random.randrange(len(JOURNAL_DAMAGES) + 1)
        what = damage_unfinished(setting, setting.random.choice(copies), number)
        out = setting.extraction.fresh()
        with setting.extraction.merging(copies, out) as run:
            code, line = ended(run)
        require_one_line(code, line, [*copies, copies[0].parent], what)
        assert code or setting.judge(out, what).is_right, what
        print(what, 'refused' if code else 'right')
        for folder in [*copies, out]:
            shutil.rmtree(folder, ignore_errors=True)
        assert [contents(part) for part in parts] == before
