"""Which students stay beside the last one."""

from pathlib import Path
from typing import Any

import torch

from mtpd.detectors.checkpoint import load_checkpoint
from mtpd_train.training.saving import drop_all, drop_old, epoch_file, is_best


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(folder: Path, *epochs: int) -> None:
    for epoch in epochs:
        epoch_file(folder, epoch).write_bytes(b'')


def test_the_last_ones_stay(tmp_path: Path) -> None:
    make(tmp_path, 8, 9, 10, 11)
    (tmp_path / 'epoch_x.pth').write_bytes(b'mine')
    drop_old(tmp_path, epoch=11, keep=2)
    assert names(tmp_path) == ['epoch_10.pth', 'epoch_11.pth', 'epoch_x.pth']
    # A run that was killed before its state was saved goes on from epoch 10.
    drop_old(tmp_path, epoch=10, keep=2)
    assert names(tmp_path) == ['epoch_10.pth', 'epoch_x.pth']
    drop_old(tmp_path, epoch=10, keep=0)
    assert names(tmp_path) == ['epoch_x.pth']


def test_better_is_better(tmp_path: Path) -> None:
    assert is_best(tmp_path, {'box/AP': 0.0})
    assert not is_best(tmp_path, {'box/AP': -1.0})
    assert not is_best(tmp_path, {})
    torch.save({'meta': {'metrics': {'box/AP': 0.25}}}, tmp_path / 'best.pth')
    assert not is_best(tmp_path, {'box/AP': 0.25})
    assert is_best(tmp_path, {'box/AP': 0.26})
    drop_all(tmp_path)
    assert is_best(tmp_path, {'box/AP': 0.1})


def test_a_run_keeps_its_last_and_its_best(train: Any, write_stage: Any, records: Any, tmp_path: Path) -> None:
    out = tmp_path / 'run'
    stage = write_stage(tmp_path / 'stage.yaml', data={'batch_size': 24}, optim={'epochs': 4}, save={'keep': 3})
    train(stage, '--out', out)
    folder = out / 'stage1'
    assert [name for name in names(folder) if name.startswith('epoch')] == [f'epoch_{k}.pth' for k in (2, 3, 4)]
    aps = [record['metrics']['box/AP'] for record in records(out, 'evaluation')]
    best = torch.load(folder / 'best.pth', weights_only=True)
    assert best['meta']['epoch'] == 1 + aps.index(max(aps))
    assert best['meta']['metrics']['box/AP'] == max(aps)
    assert best['meta']['dataset_meta']['classes'][0] == 'circle'
    last, student = (load_checkpoint(folder / name)[0] for name in ('epoch_4.pth', 'student.pth'))
    assert all(torch.equal(last[name], value) for name, value in student.items())
    train(stage, '--out', tmp_path / 'none', '--set', 'save.keep=0', '--set', 'data.val=null')
    assert names(tmp_path / 'none' / 'stage1') == ['student.pth', 'student_config.py']
