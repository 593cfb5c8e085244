"""Reading and checking COCO annotation files."""

import copy
import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtpd.data.account import evaluation_account, suspicions, training_account
from mtpd.data.annotation_table import CocoAnnotation, CocoImage
from mtpd.data.coco import CocoCategory, CocoSet, missing_images, read_annotations, training_annotations
from mtpd.errors import InputError
from mtpd.evaluation import evaluate

Document = dict[str, Any]

VALID: Document = {
    'images': [
        {'id': 7, 'file_name': 'a.jpg', 'height': 40, 'width': 60},
        {'id': 3, 'file_name': 'deep/b.jpg', 'height': 10, 'width': 20},
    ],
    'categories': [{'id': 18, 'name': 'dog'}, {'id': 2, 'name': 'bicycle'}],
    'annotations': [
        {
            'id': 1, 'image_id': 7, 'category_id': 18, 'bbox': [10, 5.5, 20, 4], 'area': 70.5, 'iscrowd': 0,
            'segmentation': [[10, 5.5, 30, 5.5, 30, 9.5], [1, 2, 3, 4]],
        },
        {
            'id': 2, 'image_id': 7, 'category_id': 2, 'bbox': [0, 0, 60, 40], 'area': 2400, 'iscrowd': 1,
            'segmentation': {'size': [40, 60], 'counts': [0, 2400]},
        },
    ],
}  # fmt: skip


IMAGE = {'id': 1, 'file_name': 'a.jpg', 'height': 10, 'width': 20}


def write(folder: Path, document: object) -> Path:
    path = folder / 'instances.json'
    path.write_text(json.dumps(document))
    return path


def test_read_annotations(tmp_path: Path) -> None:
    path = write(tmp_path, VALID)
    coco_set = read_annotations(path)

    assert coco_set.images == (CocoImage(7, 'a.jpg', 40, 60), CocoImage(3, 'deep/b.jpg', 10, 20))
    assert coco_set.categories == (CocoCategory(2, 'bicycle'), CocoCategory(18, 'dog'))
    assert coco_set.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    dog, crowd = coco_set.annotations[7]
    assert dog == CocoAnnotation((10, 5.5, 20, 4), 1, False, 70.5, [[10, 5.5, 30, 5.5, 30, 9.5]], num_bad_polygons=1)
    assert list(dog.box) == [10, 5.5, 30, 9.5]
    assert crowd.category == 0
    assert crowd.is_crowd
    assert coco_set.annotations[3] == ()


def set_value(*keys: str | int, value: object) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        target: Any = document
        for key in keys[:-1]:
            target = target[key]
        if value is DELETE:
            del target[keys[-1]]
        else:
            target[keys[-1]] = value

    return change


DELETE = object()
NO_TRUTH_VALUES: list[Any] = ['0', '1', '', 'false', 2, -1, 0.5, [], [0], {}, float('nan')]
NO_AREAS: list[Any] = ['5', True, [5], 10**400, float('nan')]
BROKEN: dict[str, tuple[Callable[[Document], None], str]] = {
    'no images': (set_value('images', value=DELETE), "no list 'images'"),
    'no annotations': (set_value('annotations', value=DELETE), "no list 'annotations'"),
    'categories no list': (set_value('categories', value={}), "no list 'categories'"),
    'image no object': (set_value('images', 1, value=[3]), r'images\[1\]: it is a list'),
    'image without id': (set_value('images', 1, 'id', value=DELETE), r"images\[1\]: 'id' is missing"),
    'image id text': (set_value('images', 1, 'id', value='3'), r"id is '3'"),
    'image id too large': (set_value('images', 1, 'id', value=2**63), 'id is 9223372036854775808'),
    'image id twice': (set_value('images', 1, 'id', value=7), r'images\[1\]: id 7 is already used'),
    'category id twice': (set_value('categories', 1, 'id', value=18), r'categories\[1\]: id 18 is already used'),
    'height 0': (set_value('images', 0, 'height', value=0), r'images\[0\]: height is 0'),
    'width a truth value': (set_value('images', 0, 'width', value=True), 'width is True'),
    'height a fraction': (set_value('images', 0, 'height', value=40.5), r'height is 40\.5'),
    'category name': (set_value('categories', 0, 'name', value=5), 'name is 5'),
    'unknown image': (set_value('annotations', 0, 'image_id', value=8), r'annotations\[0\]: image_id 8 is not'),
    'unknown category': (set_value('annotations', 0, 'category_id', value=1), 'category_id 1 is not'),
    'no bbox': (set_value('annotations', 0, 'bbox', value=DELETE), "'bbox' is missing"),
    'bbox of 3': (set_value('annotations', 0, 'bbox', value=[1, 2, 3]), r'bbox is \[1, 2, 3\]'),
    'bbox of texts': (set_value('annotations', 0, 'bbox', value=['1', 2, 3, 4]), 'bbox is'),
    'bbox NaN': (set_value('annotations', 1, 'bbox', value=[0, 0, float('nan'), 4]), r's\[1\]: bbox is .*nan'),
    'bbox infinite': (set_value('annotations', 0, 'bbox', value=[0, 0, float('inf'), 4]), 'finite'),
    'bbox overflows': (set_value('annotations', 0, 'bbox', value=[1.7e308, 0, 1.7e308, 4]), 'finite'),
    'bbox beyond floats': (set_value('annotations', 0, 'bbox', value=[10**400, 0, 1, 4]), r'annotations\[0\]'),
    'area infinite': (set_value('annotations', 0, 'area', value=float('inf')), 'area is inf'),
    'bbox null': (set_value('annotations', 0, 'bbox', value=None), 'bbox is None, expected .*4 finite numbers'),
    'mask of another size': (set_value('annotations', 1, 'segmentation', 'size', value=[60, 40]), 'size is .60, 40'),
    'image too large': (set_value('images', 0, 'height', value=2**21), r'images\[0\]: height is 2097152'),
    'image of too many px': (
        lambda document: document['images'][0].update(height=2**20, width=2**11),
        r'images\[0\]: height x width is 1048576 x 2048',
    ),
    'half a character': (set_value('categories', 0, 'name', value='\ud800'), r'categories\[0\]: name is'),
    **{
        f'{key} {value!r}': (
            set_value('annotations', 1, key, value=value),
            rf'annotations\[1\]: {key} is .*expected 0 or 1',
        )
        for key in ('iscrowd', 'ignore')
        for value in NO_TRUTH_VALUES
    },
    **{
        f'area {value!r}': (set_value('annotations', 1, 'area', value=value), r'annotations\[1\]: area is ')
        for value in NO_AREAS
    },
}


@pytest.mark.parametrize('name', BROKEN)
def test_read_annotations__broken(name: str, tmp_path: Path) -> None:
    change, message = BROKEN[name]
    document = copy.deepcopy(VALID)
    change(document)
    path = write(tmp_path, document)
    with pytest.raises(InputError, match=message) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(f'{path}: ')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'file_name',
    ['../x.jpg', 'a/../../x.jpg', 'a/../x.jpg', '/etc/passwd', '..', '.', '', 'C:/x.jpg', 'a\\..\\x.jpg', 'a\0.jpg', 5],
)
def test_file_name_that_leaves_the_folder(file_name: Any, tmp_path: Path) -> None:
    document = copy.deepcopy(VALID)
    document['images'][1]['file_name'] = file_name
    with pytest.raises(InputError, match=r'images\[1\]: file_name'):
        read_annotations(write(tmp_path, document))


def test_file_name_with_dots(tmp_path: Path) -> None:
    document = copy.deepcopy(VALID)
    document['images'][1]['file_name'] = 'a..b/c.jpg'
    assert read_annotations(write(tmp_path, document)).images[1].file_name == 'a..b/c.jpg'


NO_COCO_JSON: dict[bytes, str] = {
    b'': 'is empty',
    b' \n': 'is empty',
    b'{"images": [': 'not valid JSON',
    b'\xff\xfe\x00': 'not valid JSON',
    b'[' * 100_000: 'is nested too deeply',
    b'{"images": ' + b'9' * 5000 + b'}': 'cannot be used',
    b'{"images": [], "images": [1]}': "cannot be used: the key 'images' appears twice",
    b'[]': 'holds a list, expected a COCO',
    b'[{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.5}]': 'holds a list that looks like detect',
    b'3': 'holds a int',
    b'null': 'holds a NoneType',
}


@pytest.mark.parametrize('content', NO_COCO_JSON)
def test_read_annotations__no_coco_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / 'x.json'
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf'x\.json: {NO_COCO_JSON[content]}'):
        read_annotations(path)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-be', 'utf-32'])
def test_read_annotations__other_encodings(encoding: str, tmp_path: Path) -> None:
    document = copy.deepcopy(VALID)
    document['categories'][0]['name'] = 'Hündchen'
    (tmp_path / 'x.json').write_bytes(json.dumps(document, ensure_ascii=False).encode(encoding))
    assert read_annotations(tmp_path / 'x.json').categories[1].name == 'Hündchen'


def test_read_annotations__defaults(tmp_path: Path) -> None:
    """Keys that may be missing or null, and those that nobody reads, which may be anything."""
    triangle = [[0, 0, 20, 0, 20, 10]]
    read = {'image_id': 7, 'category_id': 18, 'bbox': [0, 0, 20, 10]}
    unread = {'id': 'text', 'attributes': [None], 'score': float('nan'), 'caption': {}}
    variants: list[dict[str, Any]] = [
        read,
        read | dict.fromkeys(['area', 'iscrowd', 'ignore', 'segmentation', 'id']),
        read | unread | {'iscrowd': False, 'ignore': 0.0, 'segmentation': []},
        {'image_id': 7.0, 'category_id': 18.0, 'bbox': [0, 0.0, 20, 10], 'area': 200},
        read | {'segmentation': triangle},
        read | {'iscrowd': True, 'ignore': 1},
    ]
    document = copy.deepcopy(VALID) | {'annotations': variants, 'info': None, 'licenses': 'none'}
    *boxes, triangular, crowd = read_annotations(write(tmp_path, document)).annotations[7]
    assert boxes == [CocoAnnotation((0, 0, 20, 10), 1, False, 200.0)] * 4
    assert triangular.area == pytest.approx(100, abs=10)  # of the mask, as far as pixels go
    assert (crowd.is_crowd, crowd.is_ignored, crowd.is_object) == (True, True, False)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, '0', '1']),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(['size', 'counts', 'x']), inner),
    max_leaves=6,
)
NUMBERS = st.integers(-100, 100) | st.floats() | VALUES
FIELDS = {
    'images': ['id', 'file_name', 'height', 'width'],
    'categories': ['id', 'name'],
    'annotations': ['image_id', 'category_id', 'bbox', 'area', 'iscrowd', 'ignore', 'segmentation', 'id'],
}


@given(
    st.sampled_from([(kind, field) for kind, fields in FIELDS.items() for field in fields]),
    VALUES
    | st.lists(NUMBERS, min_size=4, max_size=4)
    | st.lists(st.lists(NUMBERS, min_size=6, max_size=8), max_size=2),
)
@example(('images', 'height'), 1)
@settings(max_examples=400)
def test_read_annotations__any_value_is_understood_or_named(place: tuple[str, str], value: Any) -> None:
    kind, field = place
    document = copy.deepcopy(VALID)
    document[kind][0][field] = value
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), document)
        coco_set = _read_or_refused(path)
        if isinstance(coco_set, str):
            # Or an id is missed, or met again, where it is used, or a mask has not the size of its image.
            elsewhere = (
                r'\w+\[\d\]: (\w+ \d+ is (not among|taken)|segmentation: size is .* expected the size of its image)'
            )
            assert re.match(rf'{path}: ({kind}\[0\]: .*{field}|{elsewhere})', coco_set)
            assert '\n' not in coco_set
            return
        for text in (training_account(coco_set), evaluation_account(coco_set, with_masks=True), *suspicions(coco_set)):
            assert text is None or '\n' not in text
        for image_kind in ('bbox', 'segm'):
            evaluate(coco_set, [], kind=image_kind)


def _read_or_refused(path: Path) -> CocoSet | str:
    try:
        return read_annotations(path)
    except InputError as error:
        return str(error)


def test_read_annotations__missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'gone\.json: cannot read.*No such file'):
        read_annotations(tmp_path / 'gone.json')


def test_missing_images(tmp_path: Path) -> None:
    coco_set = read_annotations(write(tmp_path, VALID))
    assert missing_images(coco_set.images, tmp_path) == ('a.jpg', 'deep/b.jpg')
    (tmp_path / 'deep').mkdir()
    (tmp_path / 'deep' / 'b.jpg').touch()
    assert missing_images(coco_set.images, tmp_path) == ('a.jpg',)


def test_missing_images__names_that_a_line_would_change(tmp_path: Path) -> None:
    document = {'images': [IMAGE | {'file_name': 'a.jpg\n'}], 'annotations': [], 'categories': []}
    (tmp_path / 'a.jpg').touch()
    assert missing_images(read_annotations(write(tmp_path, document)).images, tmp_path) == ("'a.jpg\\n'",)


@pytest.mark.parametrize(
    ('key', 'wanted'),
    [
        ('isCrowd', 'iscrowd'),
        ('is_crowd', 'iscrowd'),
        ('Ignore', 'ignore'),
        ('Area', 'area'),
        ('Segmentation', 'segmentation'),
    ],
)
def test_read_annotations__other_spellings(key: str, wanted: str, tmp_path: Path) -> None:
    one = {'image_id': 1, 'category_id': 1, 'bbox': [0, 0, 1, 1]}
    document: Document = {
        'images': [IMAGE],
        'annotations': [one, one | {key: 1}],
        'categories': [{'id': 1, 'name': 'a'}],
    }
    with pytest.raises(InputError, match=rf"annotations\[1\]: .*'{key}' with 1.*'{wanted}'"):
        read_annotations(write(tmp_path, document))
    # A file that says both is read as ever.
    document['annotations'] = [one | {key: 1, wanted: None}]
    read_annotations(write(tmp_path, document))


def test_training_annotations(tmp_path: Path) -> None:
    """Each box with whether training sees it; image a.jpg is 60 x 40 px."""
    boxes: list[tuple[list[float], bool]] = [
        ([5, 5, 10, 10], True),
        ([5, 5, 1, 1], True),  # a box of one px
        ([5, 5, 0.99, 10], False),
        ([5, 5, 10, 0.5], False),
        ([5, 5, -10, 10], False),
        ([60, 5, 10, 10], False),  # begins where the image ends
        ([59.5, 5, 10, 10], True),
        ([5, 40, 10, 10], False),
        ([-10, 5, 10, 10], False),
        ([-10, 5, 11, 10], True),
    ]
    document = copy.deepcopy(VALID)
    document['annotations'] = [
        {'image_id': 7, 'category_id': 2, 'bbox': box, 'area': 5, 'iscrowd': index % 2}
        for index, (box, _) in enumerate(boxes)
    ]
    document['annotations'] += [
        {'image_id': 7, 'category_id': 2, 'bbox': [5, 5, 10, 10], 'area': 0},
        {'image_id': 7, 'category_id': 2, 'bbox': [5, 5, 10, 10], 'area': 100, 'ignore': 1},
    ]
    coco_set = read_annotations(write(tmp_path, document))
    seen = training_annotations(coco_set, coco_set.images[0])

    wanted = [(box, index % 2) for index, (box, keep) in enumerate(boxes) if keep]
    found = [([a.box[0], a.box[1], a.box[2] - a.box[0], a.box[3] - a.box[1]], int(a.is_crowd)) for a in seen]
    assert found == wanted
    assert training_annotations(coco_set, coco_set.images[1]) == ()


@pytest.mark.real
def test_training_annotations__as_mmdet(real_dir: Path) -> None:
    """mmdet's own data set is the oracle, on real annotations."""
    from mtpd.detectors.of_mmdet.runtime import prepare

    prepare()
    from mmdet.datasets import CocoDataset

    path = real_dir / 'golden_eval' / 'instances_coco_small_val.json'
    coco_set = read_annotations(path)
    classes = [category.name for category in coco_set.categories]
    dataset = CocoDataset(ann_file=str(path), metainfo={'classes': classes}, data_prefix={'img': ''}, test_mode=True)
    assert len(dataset) == len(coco_set.images)
    by_id = {image.id: image for image in coco_set.images}
    for index in range(len(dataset)):
        record = dataset.get_data_info(index)
        ours = [
            (list(a.box), a.category, int(a.is_crowd)) for a in training_annotations(coco_set, by_id[record['img_id']])
        ]
        assert ours == [(i['bbox'], i['bbox_label'], i['ignore_flag']) for i in record['instances']]


@pytest.mark.real
@pytest.mark.parametrize('split', ['train2017', 'val2017'])
def test_read_annotations__real(split: str, real_dir: Path) -> None:
    folder = real_dir / 'coco_mini'
    coco_set = read_annotations(folder / 'annotations' / f'instances_{split}.json')
    assert len(coco_set.categories) == 80
    assert coco_set.categories[11].name == 'stop sign'  # id 13: COCO skips 12
    assert missing_images(coco_set.images, folder / split) == ()
    num_annotations = sum(map(len, coco_set.annotations.values()))
    assert (len(coco_set.images), num_annotations) == {'train2017': (57, 557), 'val2017': (66, 560)}[split]
