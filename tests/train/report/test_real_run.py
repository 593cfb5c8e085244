"""The page of a run that was really trained: predictions, and maps of teacher and student."""

import base64
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mtpd.data.coco import read_annotations
from mtpd.detectors.of_mmdet.runtime import known_warnings_ignored
from mtpd_train.report.cli import main
from mtpd_train.report.feature_maps import stage_maps
from mtpd_train.report.predictions import predictions
from mtpd_train.report.run_log import RunLog, read_run

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def finished(
    tmp_path_factory: pytest.TempPathFactory,
    train: Callable[..., Any],
    write_stage: Callable[..., Path],
    caches: dict[int, Path],
) -> Path:
    """A run of a distilled and a plain stage."""
    folder = tmp_path_factory.mktemp('reported')
    detects_all = {'test_cfg.score_thr': 0.0}
    distill = [{'loss': 'masked_mse', 'levels': ['p3']}]
    files = [
        write_stage(folder / 'one.yaml', model=detects_all, cache=caches[16], distill=distill),
        write_stage(folder / 'two.yaml', model=detects_all),
    ]
    train(*files, '--out', folder / 'run')
    return folder / 'run'


def pixels(uri: str) -> npt.NDArray[np.int64]:
    """Of a picture in a data URI."""
    content = base64.b64decode(uri.split(',')[1])
    return np.asarray(Image.open(io.BytesIO(content)).convert('RGB')).astype(np.int64)


def _train_annotations(run: RunLog) -> Path:
    data = run.stages[0].settings['data']
    return Path(data['coco']) / 'annotations' / f'instances_{data["train"]}.json'


def page_of(run: Path) -> str:
    with known_warnings_ignored():
        result = CliRunner().invoke(main, [str(run), '--images', '2', '--min-score', '0', '-q'])
    assert result.exit_code == 0, result.output
    return (run / 'report.html').read_text()


def test_the_page_has_everything(finished: Path) -> None:
    text = page_of(finished)
    assert 'No predictions' not in text
    assert re.findall('No maps: ([^<]*)', text) == ['the stage did not use a cache']
    assert text.count('as the student of stage 1 sees it') == 2
    assert text.count('as the student of stage 2 sees it') == 2
    assert text.count('p3 of the student on') == 2
    for name in ('circle', 'square', 'triangle', 'star', 'cross', 'ring'):
        assert f'<th scope="row">{name}</th>' in text


def test_predictions_are_counted(finished: Path) -> None:
    found = predictions(read_run(finished), num_images=3, min_score=0.0, device=CPU)
    assert (found.titles, found.missing) == ({1: '', 2: ''}, {})
    assert len(found.images) == 3
    for image in found.images:
        assert image.num_objects > 0
        assert [one.stage for one in image.found] == [1, 2]
        for one in image.found:
            assert one.picture.startswith('data:image/jpeg;base64,')
            assert 0 <= one.num_found <= image.num_objects
            assert one.num_found + one.num_mistaken > 0
    # Photographs have their colours.
    data = read_run(finished).stages[0].settings['data']
    for image in found.images:
        photo = np.asarray(Image.open(Path(data['coco']) / data['val'] / image.name).convert('RGB'))
        assert np.abs(pixels(image.truth).mean((0, 1)) - photo.mean((0, 1))).max() < 12
    nothing = predictions(read_run(finished), num_images=1, min_score=1.0, device=CPU)
    assert all((one.num_found, one.num_mistaken) == (0, 0) for one in nothing.images[0].found)


def test_maps_that_are_equal_are_explained_and_look_equal(
    finished: Path, teachers: dict[int, Path], tmp_path: Path
) -> None:
    """With the teacher's own weights in the student's place: what is left is what the codec and the ridge take away."""
    copied = Path(shutil.copytree(finished, tmp_path / 'run'))
    run = read_run(copied)
    own = stage_maps(run, run.stages[0], num_images=2, device=CPU, read=read_annotations)
    for name in ('student.pth', 'student_config.py'):
        shutil.copy(teachers[16] / name, copied / 'stage1' / name)
    same = stage_maps(run, run.stages[0], num_images=2, device=CPU, read=read_annotations)
    assert list(same.explained) == list(own.explained)
    assert 'p3' in same.explained
    assert all(share > 0.95 for share in same.explained.values())
    assert all(own.explained[level] < same.explained[level] for level in same.explained)
    sizes = {one.file_name: (one.height, one.width) for one in read_annotations(_train_annotations(run)).images}
    for image, other in zip(same.images, own.images, strict=True):
        assert image.name == other.name
        for level, (taught, learned) in image.levels.items():
            assert taught == other.levels[level][0]
            assert learned != other.levels[level][1]
            assert np.abs(pixels(taught) - pixels(learned)).mean() < 20
        height, width = sizes[image.name]
        assert pixels(image.levels['p3'][0]).shape == (-(-height // 8), -(-width // 8), 3)
    assert len({sizes[image.name] for image in same.images}) == 2


def test_stages_that_have_not_finished(finished: Path, tmp_path: Path) -> None:
    """The best student so far is shown, else the newest, and it is said which; where there is none, that is said."""
    copied = Path(shutil.copytree(finished, tmp_path / 'run'))
    first, second = copied / 'stage1', copied / 'stage2'
    for path in (copied / 'student.pth', first / 'student.pth', second / 'student.pth', second / 'best.pth'):
        path.unlink()
    text = page_of(copied)
    assert text.count('stage 1 (best so far, epoch 1): ') == 2
    assert text.count('stage 2 (latest so far, epoch 1): ') == 2
    assert '<h3>Stage 1, student: best so far, epoch 1</h3>' in text
    (second / 'epoch_1.pth').unlink()
    shutil.copy(first / 'epoch_1.pth', first / 'student.pth')
    text = page_of(copied)
    assert text.count('stage 1: ') == 2
    assert '<h3>Stage 1</h3>' in text
    assert 'No predictions of stage 2: no student yet: the first is saved after an epoch' in text


@pytest.mark.parametrize('what', ['cache', 'images', 'weights'])
def test_what_is_gone_is_named(
    what: str, finished: Path, extract_teacher: Callable[..., Path], synthetic_set: Path, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(finished, tmp_path / 'run'))
    if what == 'cache':
        other = extract_teacher(24, tmp_path / 'other')
        facts = (copied / 'run.json').read_text()
        own = next(iter(read_run(copied).facts['caches']))
        (copied / 'run.json').write_text(facts.replace(own, str(other)))
        assert f'No maps: {other}: is not the cache that the stage was trained with' in page_of(copied)
    elif what == 'weights':
        (copied / 'stage1' / 'student.pth').write_bytes(b'damaged')
        text = page_of(copied)
        assert 'No predictions of stage 1: checkpoint' in text
        assert 'is a text file that begins with' in text
        assert text.count('as the student of stage 2 sees it') == 2
    else:
        for path in [copied / 'run.json', *copied.glob('stage?/student_config.py')]:
            path.write_text(path.read_text().replace(str(synthetic_set), '/nowhere'))
        text = page_of(copied)
        assert 'No predictions: /nowhere/annotations/instances_val2017.json: cannot read' in text
        assert 'No maps: /nowhere/annotations/instances_train2017.json: cannot read' in text
