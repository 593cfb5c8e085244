"""The page: whole in one file, harmless, accessible, and made of what there is."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mtpd_train.report.cli import main

WriteRun = Callable[..., Path]
HOSTILE = '<script>alert(1)</script>'
HOSTILE_PATH = 'cache/"><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ''
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def page_of(run: Path, *options: object) -> Page:
    result = report(run, *options)
    assert result.exit_code == 0, result.output
    return Page((run / 'report.html').read_text())


def require_self_contained(page: Page) -> None:
    """No script, nothing from elsewhere, and a text for every picture."""
    assert not {tag for tag, _ in page.tags} & {'script', 'link', 'iframe', 'object', 'embed', 'base', 'form'}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith('on')]
        for name in ('src', 'href'):
            assert (attributes.get(name) or '#').startswith(('#', 'data:image/'))
    assert all(image.get('alt') for image in page.all('img'))
    assert 'url(' not in page.text


def test_a_finished_run(write_run: WriteRun, tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / 'run'), '--images', 0)
    require_self_contained(page)
    for text in ('2 stages', 'finished', 'r101', 'lean 0.03', 'mgd', 'ab' * 32, 'a machine', '+60.0', '80.0', '16.0 s'):
        assert text in page.text
    assert len(page.all('img')) == 6
    assert page.text.index('dog') < page.text.index('cat')
    assert '<span class="gain">+60.0</span>' in (tmp_path / 'run' / 'report.html').read_text()
    targets = {attributes.get('id') for _, attributes in page.tags}
    assert all(link['href'][1:] in targets for link in page.all('a') if link['href'])


def test_hostile_names_are_text(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / HOSTILE.replace('/', '|'), classes=(HOSTILE, '{{ 7 * 7 }}'), cache=HOSTILE_PATH, teacher=HOSTILE
    )
    page = page_of(folder)
    require_self_contained(page)
    assert HOSTILE in page.text
    assert '{{ 7 * 7 }}' in page.text
    assert HOSTILE_PATH in page.text
    assert '<script' not in (folder / 'report.html').read_text()


def test_names_that_no_encoding_has(write_run: WriteRun, tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / 'run', classes=('a\ud800b', 'c\0d')), '--images', 0)
    assert 'a?b' in page.text


def test_a_run_that_goes_on(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run', planned=3, finished=1)
    log = folder / 'metrics.jsonl'
    log.write_bytes(log.read_bytes()[:-30])
    page = page_of(folder)
    assert 'not finished: stage 2, epoch 2 of 2' in ' '.join(page.text.split())


def test_a_stage_that_was_not_evaluated_yet(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run', finished=1)
    log = folder / 'metrics.jsonl'
    log.write_text(''.join(log.read_text().splitlines(keepends=True)[:7]))
    page = page_of(folder, '--images', 0)
    require_self_contained(page)
    assert 'box AP, stage 1' in page.text
    assert 'not finished: stage 2, epoch 1 of 2' in ' '.join(page.text.split())
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert 'not finished: stage 1, epoch 1 of 2' in ' '.join(page_of(folder, '--images', 0).text.split())


def test_a_run_that_has_hardly_begun(write_run: WriteRun, tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / 'run', begun=0, finished=0))
    require_self_contained(page)
    assert 'nothing recorded yet' in page.text
    assert 'No predictions of stage 1, 2: no student yet' in page.text
    assert page.text.count('No maps: no student yet') == 2


def test_a_run_that_has_diverged(write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run', begun=1, finished=0)
    diverged = folder / 'stage1' / 'diverged.jsonl'
    diverged.parent.mkdir()
    diverged.write_text('{}')
    text = page_of(folder).text
    assert f'Stage 1 has diverged: a loss was not finite or exploded. {diverged} lists' in text
    assert 'No predictions of stage 1: no student: its losses diverged before the first save' in text
    assert 'No predictions of stage 2: no student yet' in text
    (folder / 'stage1' / 'student.pth').write_bytes(b'')
    assert 'has diverged' not in page_of(folder, '--images', 0).text


@pytest.mark.parametrize('content', [None, b'', b'{"kind": "tr'])
@pytest.mark.parametrize('finished', [0, 2])
def test_a_log_that_is_gone(content: bytes | None, finished: int, write_run: WriteRun, tmp_path: Path) -> None:
    folder = write_run(tmp_path / 'run', begun=0, finished=finished)
    if content is not None:
        (folder / 'metrics.jsonl').write_bytes(content)
    page = page_of(folder, '--images', 0)
    gone = f'No curves and no AP: {folder / "metrics.jsonl"} is missing or empty'
    assert (gone in page.text) == bool(finished)
    assert ('Nothing is recorded yet' in page.text) == (not finished)


def test_an_older_run_says_that_it_has_no_classes(write_run: WriteRun, tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / 'run', classes=()), '--images', 0)
    assert 'No AP by class was recorded' in page.text


def test_weights_and_data_that_are_gone_are_named(write_run: WriteRun, tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / 'run'))
    assert 'No predictions of stage 1: ' in page.text
    assert 'stage1: has no student_config.py or student.json' in page.text
    assert 'No maps: cache/r101: no cache here' in page.text


def test_out(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(tmp_path / 'run')
    result = report('page', run, '--images', 0, '--out', tmp_path / 'new' / 'a.html')
    assert result.exit_code == 0, result.output
    assert str(tmp_path / 'new' / 'a.html') in result.stdout
    assert not (run / 'report.html').exists()
    result = report(run, '--images', 0, '--out', run / 'metrics.jsonl' / 'a.html')
    assert result.exit_code == 1
    assert 'cannot be written' in result.stderr


def test_no_run(tmp_path: Path) -> None:
    result = report(tmp_path)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f'Error: {tmp_path}: is not a run folder (run.json is missing); give the --out of mtpd-train'
    ]


@pytest.mark.parametrize('arguments', [['page'], ['run', '--images', 'x'], ['run', '--min-score', '2'], ['compare']])
def test_usage_errors(arguments: list[str]) -> None:
    result = report(*arguments)
    assert result.exit_code == 2
    assert 'Usage:' in result.stderr
