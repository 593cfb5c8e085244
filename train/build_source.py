"""What a stage learns from, and the input that student and teacher share."""

import mtpd.cache
from mtpd.detectors.padding import at_geometry
from mtpd.detectors.preprocessing import Preprocessing
from mtpd.geometry import Geometry
from mtpd_train.cached_teacher import CachedTeacher
from mtpd_train.settings import DataSettings, StageSettings
from mtpd_train.teacher_source import TeacherSource


def build_source(settings: StageSettings) -> TeacherSource | None:
    """The teacher of a stage; None for plain training.

    Raises:
        CacheError: its cache cannot be used.
    """
    return None if settings.cache is None else CachedTeacher(mtpd.cache.open(settings.cache))


def student_preprocessing(own: Preprocessing, data: DataSettings, source: TeacherSource | None) -> Preprocessing:
    """The student's preprocessing at the geometry of the teacher, of the stage file, or else its own."""
    if source is not None:
        return at_geometry(own, source.geometry)
    if data.geometry is None:
        return at_geometry(own, own.geometry)
    asked = data.geometry
    return at_geometry(own, Geometry(asked.scale, asked.keep_ratio, asked.pad_divisor, asked.pad_size))
