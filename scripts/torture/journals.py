"""Damage to an extraction in the middle, which then goes on: what counts as committed is the journal's word."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from mtpd.cache.writing.journal import journal_paths
from torture.damages import flip_bit, shards
from torture.setting import Setting, contents, extract, extracting, num_committed, wait_until
from torture.trials import Trial, judged


def journals(setting: Setting, number: int) -> Iterator[Trial]:
    """An extraction is killed, damaged, and resumed; the resume may refuse, and reads may."""
    partial = _partial(setting)
    for trial in range(number):
        kind, damage = list(KINDS.items())[trial % len(KINDS)]
        root = setting.fresh('journal')
        shutil.copytree(partial, root)
        what = damage(root, setting)
        code, line = extract(setting.subject, root)
        if code == 0:
            yield judged(kind, root, setting, what=what)
        elif code == 1 and str(root) in line and 'this is a bug' not in line:
            yield Trial(kind, 'lost', line)
        else:
            yield Trial(kind, 'failed', f'{what}: the resume ended with {code}: {line}')
        shutil.rmtree(root)


def _partial(setting: Setting) -> Path:
    """A cache with some of its shards."""
    out = setting.fresh('partial')
    with extracting(setting.subject, out) as run:
        wait_until(lambda: num_committed(out) >= 4, run)
        assert run.kill(), 'the extraction was too fast to be killed in the middle'
    return out


def _journal(root: Path) -> Path:
    """The journal of who wrote here, the whole or a part."""
    return journal_paths(root)[0]


def _flipped(root: Path, setting: Setting) -> str:
    flip_bit(_journal(root), setting.random)
    return 'a bit of the journal'


def _cut(root: Path, setting: Setting) -> str:
    path = _journal(root)
    path.write_bytes(path.read_bytes()[: setting.random.randrange(path.stat().st_size)])
    return 'the journal cut off'


def _shuffled(root: Path, setting: Setting) -> str:
    path = _journal(root)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b''.join(setting.random.choices(lines, k=setting.random.randrange(1, 8))))
    return 'lines of the journal in any order, missing and repeated'


def _of_another(root: Path, setting: Setting) -> str:
    """Journal and shards of another teacher lie over the folder, by a copy of the wrong one."""
    teacher = setting.random.choice(['shifted', 'other'])
    other = setting.fresh('another')
    with extracting(setting.subject, other, teacher=teacher) as run:
        wait_until(lambda: num_committed(other) >= 5, run)
        run.kill()
    keep = {'plan.json'} if setting.random.random() < 0.5 else {'plan.json', 'index', 'teacher.safetensors'}
    for name, content in contents(other).items():
        if name.split('/')[0] not in keep:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    shutil.rmtree(other)
    return f'an unfinished cache of the teacher {teacher} copied over'


def _damaged_shard(root: Path, setting: Setting) -> str:
    path = setting.random.choice(shards(root))
    if setting.random.random() < 0.5:
        flip_bit(path, setting.random)
    else:
        path.unlink()
    return f'{path}, already committed, damaged'


def _old_shard(root: Path, setting: Setting) -> str:
    path, teacher = setting.random.choice(shards(root)), setting.random.choice(['shifted', 'other'])
    shutil.copy(setting.reference[teacher] / path.relative_to(root), path)
    return f'{path} of the teacher {teacher}'


def _plan(root: Path, setting: Setting) -> str:
    flip_bit(root / 'plan.json', setting.random)
    return 'a bit of the plan'


KINDS: dict[str, Callable[[Path, Setting], str]] = {
    'journal: flipped bit': _flipped,
    'journal: cut off': _cut,
    'journal: other order': _shuffled,
    'journal of another teacher': _of_another,
    'committed shard damaged': _damaged_shard,
    'committed shard replaced': _old_shard,
    'plan: flipped bit': _plan,
}
