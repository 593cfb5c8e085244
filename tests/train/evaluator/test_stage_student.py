"""Which student of a stage is there, and what is said where the last one is not."""

from pathlib import Path

from mtpd_train.evaluator.detector import find_student, without_student


def test_the_latest_stage_that_has_a_student_is_named(tmp_path: Path) -> None:
    first, second = tmp_path / 'stage1', tmp_path / 'stage2'
    for path in (tmp_path / 'run.json', first / 'student.pth', second / 'epoch_9.pth', second / 'epoch_10.pth'):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'')
    newest = second / 'epoch_10.pth'
    assert find_student(first) == (first / 'student.pth', '')
    assert find_student(second) == (newest, 'latest so far, epoch 10')
    way = f'for the latest so far, epoch 10 of stage 2, give {second} --checkpoint {newest}'
    assert str(without_student(tmp_path)).endswith(way)
    for path in second.iterdir():
        path.unlink()
    assert find_student(second) is None
    assert str(without_student(tmp_path)).endswith(f'give a finished stage, such as {first}')
