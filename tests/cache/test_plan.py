"""Planning: every image has one row, and the plan never changes."""

from hypothesis import given
from hypothesis import strategies as st

from mtpd.cache.format.plan import SourceImage, num_elements, plan_cache
from mtpd.geometry import Geometry, Level

LEVELS = (Level('p3', 8, 256), Level('p4', 16, 256), Level('p5', 32, 256), Level('p6', 64, 256), Level('p7', 128, 256))
GEOMETRY = Geometry((1333, 800))


@given(st.lists(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), max_size=40), st.integers(1, 2**28))
def test_every_image_has_one_row_in_the_bucket_of_its_shape(sizes: list[tuple[int, int]], shard_bytes: int) -> None:
    images = [SourceImage(number, size) for number, size in enumerate(sizes)]
    plan = plan_cache(images, geometry=GEOMETRY, levels=LEVELS, bytes_per_element=1, shard_bytes=shard_bytes)
    placed = [image for key in plan.shard_keys() for image in plan.images(key)]
    assert sorted(placed) == images
    for bucket in plan.buckets:
        assert {GEOMETRY.padded(image.size) for image in bucket.images} == {bucket.padded}
        largest = num_elements(LEVELS[:1], bucket.padded)
        assert bucket.rows_per_shard == 1 or bucket.rows_per_shard * largest <= shard_bytes
    again = plan_cache(images, geometry=GEOMETRY, levels=LEVELS, bytes_per_element=1, shard_bytes=shard_bytes)
    assert plan == again


def test_elements_of_the_common_coco_shape() -> None:
    # 640x480 at 1333x800 is 1067x800, padded to 1088x800: 100x136 + 50x68 + 25x34 + 13x17 + 7x9 cells.
    assert GEOMETRY.padded((480, 640)) == (800, 1088)
    assert num_elements(LEVELS, (800, 1088)) == 256 * (13600 + 3400 + 850 + 221 + 63)
