"""What an open cache keeps of each image and file is small: of COCO there are a hundred thousand of each."""

from pathlib import Path

import mtpd.cache


def test_equal_sizes_are_one_object(sound: Path) -> None:
    reader = mtpd.cache.open(sound)
    sizes = [image.size for bucket in reader.plan.buckets for image in bucket.images]
    assert len(set(map(id, sizes))) == len(set(sizes)) < len(sizes)


def test_records_of_files_have_no_dict(sound: Path) -> None:
    """As models of pydantic they would take six times the memory."""
    records = mtpd.cache.open(sound).manifest.files.values()
    assert records
    assert not any(hasattr(record, '__dict__') for record in records)
