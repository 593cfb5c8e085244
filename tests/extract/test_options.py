"""What the options of `mtpd-extract` do to a cache, and what they refuse to do to what is there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mtpd.cache
from mtpd.data.coco import read_annotations
from mtpd.system.text import format_bytes

Contents = Callable[[Path], dict[str, bytes]]
ReadMaps = Callable[[Path], dict[tuple[int, str, str], torch.Tensor]]


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A finished cache that may be changed."""
    return Path(shutil.copytree(whole, tmp_path / 'copied'))


def test_every_image_is_there_even_without_annotations(whole: Path, synthetic_set: Path) -> None:
    coco = read_annotations(synthetic_set / 'annotations' / 'instances_train2017.json')
    cache = mtpd.cache.open(whole)
    assert sorted(cache.image_ids) == sorted(image.id for image in coco.images)
    assert [image.id for image in coco.images if not coco.annotations[image.id]]
    for image in coco.images:
        assert cache.sizes(image.id).original == (image.height, image.width)


def test_defaults(whole: Path) -> None:
    cache = mtpd.cache.open(whole)
    assert cache.views == ('plain', 'flip')
    assert [level.name for level in cache.levels] == ['p3', 'p4', 'p5']
    assert cache.manifest.description.fingerprint['teacher']['mode'] == 'eval'


def test_limit_takes_the_first_images(command: Any, synthetic_set: Path, tmp_path: Path) -> None:
    command.run(tmp_path / 'cache', '--limit', 5)
    coco = read_annotations(synthetic_set / 'annotations' / 'instances_train2017.json')
    assert sorted(mtpd.cache.open(tmp_path / 'cache').image_ids) == [image.id for image in coco.images[:5]]


def test_levels_and_views(command: Any, whole: Path, tmp_path: Path, read_maps: ReadMaps) -> None:
    command.run(tmp_path / 'cache', '--levels', 'p5, p3', '--views', 'plain')
    found, everything = read_maps(tmp_path / 'cache'), read_maps(whole)
    assert found.keys() == {key for key in everything if key[1] == 'plain' and key[2] != 'p4'}
    assert all(torch.equal(maps, everything[key]) for key, maps in found.items())
    assert not list((tmp_path / 'cache').rglob('flip')) + list((tmp_path / 'cache').rglob('p4'))


def test_scale(command: Any, tmp_path: Path) -> None:
    command.run(tmp_path / 'cache', '--scale', '96x64', '--limit', 3)
    cache = mtpd.cache.open(tmp_path / 'cache')
    for image_id in cache.image_ids:
        sizes = cache.sizes(image_id)
        factor = min(96 / max(sizes.original), 64 / min(sizes.original))
        assert sizes.resized == tuple(int(side * factor + 0.5) for side in sizes.original)


@pytest.mark.parametrize(
    'options',
    [('--batch-size', 5), ('--batch-size', 1, '--workers', 0), ('--batch-size', 64, '--workers', 5)],
    ids=lambda options: ' '.join(map(str, options)),
)
def test_batches_and_workers_change_nothing(
    command: Any, whole: Path, tmp_path: Path, many_shards: Any, read_maps: ReadMaps, options: tuple[object, ...]
) -> None:
    """Five does not divide the shards; a batch of another size may round differently in the last bit."""
    command.run(tmp_path / 'cache', *options, *(many_shards if options[1] == 5 else ()))
    found, wanted = read_maps(tmp_path / 'cache'), read_maps(whole)
    assert found.keys() == wanted.keys()
    for key, maps in found.items():
        step = (wanted[key].amax((-2, -1)) - wanted[key].amin((-2, -1))).max() / 255
        assert (maps - wanted[key]).abs().max() <= 1.01 * step


def test_images_and_annotations_in_place_of_coco(
    command: Any, synthetic_set: Path, whole: Path, tmp_path: Path, contents: Contents
) -> None:
    annotations = synthetic_set / 'annotations' / 'instances_train2017.json'
    elsewhere = ('--coco', tmp_path / 'nothing', '--images', synthetic_set / 'train2017', '--annotations', annotations)
    command.run(tmp_path / 'cache', *elsewhere)
    assert contents(tmp_path / 'cache') == contents(whole)


def test_a_finished_cache_is_left_alone(
    command: Any, copied: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(copied)
    monkeypatch.setattr('mtpd_extract.run.extract_groups', lambda *_, **__: pytest.fail('the teacher ran'))
    result = command.run(copied)
    assert 'is already complete, nothing to do' in result.stdout
    assert result.stderr == ''
    assert contents(copied) == before


def test_summary_and_progress(command: Any, tmp_path: Path) -> None:
    result = command.run(tmp_path / 'cache', '--limit', 4)
    files = mtpd.cache.open(tmp_path / 'cache').manifest.files
    size = sum(one.num_bytes for one in files.values())
    # The index and the teacher's weights are not those of an image.
    of_images = sum(one.num_bytes for name, one in files.items() if '/plain/' in name or '/flip/' in name)
    assert of_images < size
    assert result.stdout.splitlines()[-1] == (
        f'{tmp_path / "cache"}: 4 images, {format_bytes(size)}, {format_bytes(of_images / 4)} per image'
    )
    assert '4/4' in result.stderr
    assert 'image/s' in result.stderr
    assert 'MB/s' in result.stderr
    assert '/4' not in result.stdout


def test_overwrite(command: Any, copied: Path, read_maps: ReadMaps) -> None:
    assert 'holds another extraction' in command.error(copied, '--views', 'plain')
    command.run(copied, '--views', 'plain', '--overwrite')
    assert {view for _, view, _ in read_maps(copied)} == {'plain'}


@pytest.mark.parametrize('name', ['manifest.json', 'plan.json', 'thesis.tex'])
def test_overwrite_deletes_only_caches(command: Any, tmp_path: Path, contents: Contents, name: str) -> None:
    """Other programs have files of these names too."""
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / name).write_text('{"name": "my browser extension"}')
    before = contents(tmp_path)
    for options in ((), ('--overwrite',), ('--no-resume',), ('--dry-run',)):
        assert f'holds {name} but no cache' in command.error(tmp_path / 'mine', *options)
    assert contents(tmp_path) == before


def test_overwrite_spares_what_lies_beside_a_cache(command: Any, copied: Path, contents: Contents) -> None:
    (copied / 'notes.txt').write_text('do not lose')
    before = contents(copied)
    assert 'the folder also holds notes.txt' in command.error(copied, '--overwrite')
    assert contents(copied) == before
    command.run(copied)


def test_overwrite_killed_in_the_middle_can_be_repeated(
    command: Any, copied: Path, whole: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('mtpd_extract.output_folder.shutil.rmtree', killed)
        assert command.invoke(copied, '--overwrite').exit_code == 130
    assert not (copied / 'manifest.json').exists()
    assert 'holds another extraction' in command.error(copied)
    command.run(copied, '--overwrite')
    assert contents(copied) == contents(whole)


def test_no_resume(command: Any, copied: Path, tmp_path: Path) -> None:
    assert 'remove --no-resume to resume it' in command.error(copied, '--no-resume')
    command.run(tmp_path / 'new', '--no-resume', '--limit', 1)


def test_an_empty_folder_will_do(command: Any, tmp_path: Path) -> None:
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / '.lock').touch()
    command.run(tmp_path / 'cache', '--limit', 1, '--no-resume', '--overwrite')


def another_annotation_file(folder: Path, synthetic_set: Path) -> tuple[object, ...]:
    path = synthetic_set / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_bytes())
    content['info']['description'] = 'another'
    (folder / 'other.json').write_text(json.dumps(content))
    return '--images', synthetic_set / 'train2017', '--annotations', folder / 'other.json'


@pytest.mark.parametrize('is_finished', [True, False], ids=['finished', 'interrupted'])
@pytest.mark.parametrize(
    ('change', 'field'),
    [
        ('checkpoint', 'fingerprint.teacher.weights is '),
        ('annotations', 'fingerprint.data.annotations is '),
        (('--codec', 'fp16'), 'codec is int8 there and fp16 here'),
        (('--codec', 'lean'), 'codec is int8 there and lean here'),
        (('--scale', '64x64'), 'geometry.scale is [128, 128] there and [64, 64] here'),
        (('--limit', 3), 'fingerprint.data.'),
        (('--mean', '0,0,0'), 'fingerprint.normalisation.mean is [110.0, 115.0, 120.0] there and [0.0, 0.0, 0.0] here'),
        (('--levels', 'p3'), 'levels'),
        (('--views', 'flip'), "views is ['plain', 'flip'] there and ['flip'] here"),
    ],
)
def test_another_extraction_is_not_mixed_in(
    command: Any,
    copied: Path,
    tmp_path: Path,
    synthetic_set: Path,
    change: Any,
    field: str,
    is_finished: bool,
    contents: Contents,
) -> None:
    if change == 'checkpoint':
        torch.save({'shift': 0.001}, tmp_path / 'other.pth')
        change = ('--checkpoint', tmp_path / 'other.pth')
    elif change == 'annotations':
        change = another_annotation_file(tmp_path, synthetic_set)
    if not is_finished:
        manifest = json.loads((copied / 'manifest.json').read_bytes())
        plan = manifest['description'] | {'buckets': manifest['buckets']}
        (copied / 'manifest.json').unlink()
        (copied / 'plan.json').write_text(json.dumps(plan))
    before = contents(copied)
    error = command.error(copied, *change)
    assert f'{copied}: holds another extraction: {field}' in error
    assert '--overwrite' in error
    assert contents(copied) == before
