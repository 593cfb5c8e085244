"""What an unfinished extraction is resumed with: the same, or nothing; libraries and devices may differ."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.cache.writing.writer import CacheWriter

Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def unfinished(command: Any, tmp_path: Path, many_shards: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """An extraction that was interrupted when its first shard was committed."""
    commit = CacheWriter.commit
    committed: list[Any] = []

    def stop_after_one(writer: CacheWriter, group: Any) -> int:
        if committed:
            raise KeyboardInterrupt
        committed.append(group)
        return commit(writer, group)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, 'commit', stop_after_one)
        assert command.invoke(tmp_path / 'cache', *many_shards).exit_code == 130
    return tmp_path / 'cache'


def test_another_teacher_of_the_same_weights_is_refused(
    make_command: Any, teacher_file: Path, synthetic_set: Path, unfinished: Path, many_shards: Any, contents: Contents
) -> None:
    other = unfinished.with_name('other.py')
    other.write_text(teacher_file.read_text().replace('relu()', 'sigmoid()'))
    before = contents(unfinished)
    error = make_command(f'{other}:build', synthetic_set).error(unfinished, *many_shards)
    definitions = error.split('fingerprint.teacher.definition is ')[1].split(' here')[0].split(' there and ')
    assert len(set(definitions)) == 2
    assert all(len(one) == 64 for one in definitions)
    assert contents(unfinished) == before


def test_another_precision_is_refused(command: Any, unfinished: Path, many_shards: Any) -> None:
    convolution = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolution.fp32_precision
    try:
        convolution.fp32_precision = 'ieee'
        error = command.error(unfinished, *many_shards)
    finally:
        convolution.fp32_precision = before
    assert f'fingerprint.teacher.precision.convolution is {before} there and ieee here' in error


def test_other_image_files_are_warned_about(
    make_command: Any, teacher_file: Path, synthetic_set: Path, unfinished: Path, many_shards: Any
) -> None:
    coco = unfinished.with_name('coco')
    shutil.copytree(synthetic_set, coco)
    command = make_command(f'{teacher_file}:build', coco)
    image = next((coco / 'train2017').iterdir())
    image.write_bytes(image.read_bytes() + b'\0')
    assert 'the sizes of image files changed' in command.run(unfinished, *many_shards).stderr


def test_other_libraries_and_devices_are_warned_about(
    command: Any, unfinished: Path, many_shards: Any, whole: Path, read_maps: Any
) -> None:
    plan = unfinished / 'plan.json'
    content = json.loads(plan.read_bytes())
    assert content['provenance']['versions']['torch'] == torch.__version__.split('+')[0]
    content['provenance']['versions']['torch'] = '1.0.0'
    device, content['provenance']['device'] = content['provenance']['device'], 'an abacus'
    plan.write_text(json.dumps(content))
    result = command.run(unfinished, *many_shards)
    (warning,) = [line for line in result.stderr.splitlines() if line.startswith('warning: ')]
    assert f'device was an abacus and is {device}; torch was 1.0.0 and is {torch.__version__.split("+")[0]};' in warning
    assert read_maps(unfinished).keys() == read_maps(whole).keys()


def test_nothing_is_said_where_nothing_differs(command: Any, unfinished: Path, many_shards: Any) -> None:
    assert 'warning' not in command.run(unfinished, *many_shards).stderr
    # A finished cache is not gone on with.
    assert 'warning' not in command.run(unfinished, *many_shards).stderr
    assert len(mtpd.cache.open(unfinished)) == 24
