"""Nothing that lies in the folder of a cache is unpickled, executed or believed for being there."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mtpd.cache
from mtpd.errors import CacheError

pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


def add_zarr_v2_pickles(root: Path, marker: Path) -> None:
    """A zarr v2 array whose filter unpickles its chunks, in the place of every level's array."""
    document = {
        'zarr_format': 2,
        'shape': [1, 1, 1, 1],
        'chunks': [1, 1, 1, 1],
        'dtype': '|O',
        'fill_value': None,
        'order': 'C',
        'compressor': None,
        'filters': [{'id': 'pickle', 'protocol': 5}],
    }
    for folder in [root, *root.glob('*x*/*/p?')]:
        (folder / 'zarr.json').unlink()
        (folder / '.zgroup').write_text('{"zarr_format": 2}')
        (folder / '.zarray').write_text(json.dumps(document))
        (folder / '0.0.0.0').write_bytes(pickle.dumps(Bomb(marker)))


def test_zarr_v2_with_a_pickle_filter_is_not_unpickled(
    forgery: Any, tmp_path: Path, recipe: Any, make_recipe: Callable[..., Any]
) -> None:
    marker = tmp_path / 'unpickled'
    add_zarr_v2_pickles(forgery.root, marker)
    assert forgery.read() == 'read'
    unfinished = tmp_path / 'unfinished'
    make_recipe().write(unfinished, num_groups=3)
    add_zarr_v2_pickles(unfinished, marker)
    recipe.write(unfinished)
    assert forgery.read(unfinished) == 'read'
    assert not marker.exists()
    pickle.loads((forgery.root / '0.0.0.0').read_bytes())
    assert marker.exists(), 'the trap itself does not work'


def test_what_zarr_json_says_is_not_believed(forgery: Any) -> None:
    for path in forgery.root.rglob('zarr.json'):
        path.write_text('{"zarr_format": 3, "node_type": "array", "shape": [1000000000000], "codecs": [{"name": "x"}]}')
    assert forgery.read() == 'read'


@pytest.mark.parametrize('name', ['config.py', 'conftest.py', 'sitecustomize.py', '__init__.py', 'zarr.py', 'torch.py'])
def test_code_in_the_folder_is_not_run(forgery: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (forgery.root / name).write_text(f'import os\nos.mkdir({str(forgery.root / "ran")!r})\n')
    (forgery.root / 'model.pkl').write_bytes(pickle.dumps(Bomb(forgery.root / 'ran')))
    facts = {'teacher': f'{forgery.root / name}:build', 'config': f'_base_ = {name!r}'}
    forgery.sign(lambda content: content['description'].update(provenance=facts))
    monkeypatch.chdir(forgery.root)
    assert forgery.read() == 'read'
    assert not (forgery.root / 'ran').exists()


def test_a_folder_that_must_not_be_read(cache_root: Path) -> None:
    cache_root.chmod(0)
    os.seteuid(65534) if os.geteuid() == 0 else None
    try:
        with pytest.raises(CacheError, match=str(cache_root)):
            mtpd.cache.open(cache_root)
    finally:
        os.seteuid(0) if os.getuid() == 0 else None
        cache_root.chmod(0o755)
