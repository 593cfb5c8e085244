"""The reader of JSON documents in blocks: the same values and the same refusals as of the whole text at once."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtpd.data import records
from mtpd.data.records import read_document
from mtpd.errors import InputError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
record_lists = st.lists(st.dictionaries(st.text(max_size=4), values, max_size=4), max_size=6)
documents = st.fixed_dictionaries(
    {'images': record_lists, 'annotations': record_lists}, optional={'info': values, 'licenses': values, 'x': values}
)
block_sizes = st.integers(4, 40)


@pytest.fixture(scope='module')
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('records') / 'a.json'


def read(path: Path, block_bytes: int) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {'images': [], 'annotations': []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, 'BLOCK_BYTES', block_bytes)
        digest = read_document(path, {name: one.append for name, one in found.items()})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@given(
    documents,
    block_sizes,
    st.sampled_from([None, 1, '\t']),
    st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'utf-32-le']),
    st.booleans(),
)
def test_any_document_in_blocks_of_any_size(
    path: Path, document: Any, block_bytes: int, indent: Any, encoding: str, ascii_only: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode(encoding, 'surrogatepass'))
    assert read(path, block_bytes) == {name: document[name] for name in ('images', 'annotations')}


@given(documents, block_sizes, st.data())
def test_a_document_that_is_cut_or_changed(path: Path, document: Any, block_bytes: int, data: st.DataObject) -> None:
    """It is refused where the whole text would be, at the same place, or gives the same values."""
    text = json.dumps(document, indent=1)
    place, inserted = data.draw(st.integers(1, len(text) - 1)), data.draw(st.sampled_from(['', *'}]",:0 x']))
    text = text[:place] + (inserted + text[place:] if inserted else '')
    path.write_text(text)
    problem = refusal = ''
    wanted: Any = None
    found: Any = None
    try:
        wanted = json.loads(text)
    except json.JSONDecodeError as error:
        problem = f'line {error.lineno} column {error.colno}'
    try:
        found = read(path, block_bytes)
    except InputError as error:
        refusal = str(error)
    if 'not valid JSON' in refusal:
        assert problem
        assert problem in refusal
    elif refusal:  # before its end, or it has become another document
        assert re.search('cannot be used|has no list|expected an object', refusal)
    else:
        assert not problem
        assert found == {name: wanted[name] for name in ('images', 'annotations')}


@pytest.mark.parametrize(
    ('text', 'problem'),
    [
        ('{"images": [], "images": [], "annotations": []}', "the key 'images' appears twice"),
        ('{"x": 1, "x": 2, "images": [], "annotations": []}', "the key 'x' appears twice"),
        ('{"images": [{"a": 1, "a": 2}], "annotations": []}', "the key 'a' appears twice"),
        ('{"images": {}, "annotations": []}', "has no list 'images' (it is {})"),
        ('{"images": []}', "has no list 'annotations' (it is missing)"),
        ('{"images": [], "annotations": []} 1', 'Extra data: line 1 column 35'),
        ('{"images": [3], "annotations": []}', 'images[0]: it is a int, expected an object'),
        ('{"images": []\n, "annotations": [{}\n {}]}', "Expecting ',' delimiter: line 3 column 2"),
        ('[{"image_id": 1, "score": 0.5}]', 'list that looks like detections'),
        ('[]', 'holds a list'),
        ('"a"', 'holds a str'),
        (' \n', 'is empty'),
        ('{"images": [' + '[' * 100_000, 'nested too deeply'),
    ],
)
def test_refused(path: Path, text: str, problem: str) -> None:
    path.write_text(text)
    for block_bytes in (4, 2**20):
        with pytest.raises(InputError) as caught:
            read(path, block_bytes)
        assert problem in str(caught.value)
        assert '\n' not in str(caught.value)


def test_the_same_value_twice_is_accepted(path: Path) -> None:
    path.write_text('{"x": 1, "x": 1, "images": [{"a": 2, "a": 2}], "annotations": []}')
    assert read(path, 4)['images'] == [{'a': 2}]


def test_what_a_parser_refuses_is_named(path: Path) -> None:
    path.write_text('{"images": [{}, {"id": 1}]}')

    def parse(record: dict[str, Any]) -> None:
        if record:
            raise ValueError('bad id')

    with pytest.raises(InputError, match=r'a\.json: images\[1\]: bad id'):
        read_document(path, {'images': parse})


@pytest.mark.parametrize('number', ['0.25', '12', '-1.5e-07', '1E3', '100'])
def test_a_number_that_a_block_cuts(path: Path, number: str) -> None:
    """Its beginning may be a number, too, which is another."""
    path.write_text(f'{{"x": {number}, "images": [{{"a": {number}}}], "annotations": []}}')
    for block_bytes in range(4, 60):
        assert read(path, block_bytes)['images'] == [{'a': json.loads(number)}]
