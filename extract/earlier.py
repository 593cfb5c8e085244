"""Going on with extractions that an earlier version of mtpd began."""

from dataclasses import replace
from pathlib import Path

from mtpd.cache.format.manifest import TEACHER_FILE
from mtpd.cache.format.teacher_tensors import without_record
from mtpd.cache.writing.plan_file import read_plan_file
from mtpd.errors import CacheError
from mtpd.system.files import sha256_bytes
from mtpd_extract.build import Extraction


def without_head_record(extraction: Extraction, out: Path) -> Extraction | None:
    """The extraction without its record of the RoI head, if the unfinished cache in `out` was planned so; else None.

    Its shards are the same and may have taken days, so it resumes as it was started. The cache then lacks the record.
    """
    if extraction.teacher.roi_head is None:
        return None
    try:
        planned = read_plan_file(out).files.get(TEACHER_FILE)
    except CacheError:  # there is nothing to resume
        return None
    plain = without_record(extraction.teacher_weights)
    if planned is None or planned.sha256 != sha256_bytes(plain):
        return None
    return replace(extraction, teacher_weights=plain)
