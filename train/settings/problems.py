"""Collects the problems of stages and reports them together: place, key, the value found and the value wanted."""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mtpd.errors import InputError, MtpdError
from mtpd.system import text
from mtpd_train.settings.stage_settings import StageSettings

Key = tuple[str | int, ...]

# Texts by pydantic's error types; {found} is the offending value, the other names come from pydantic's context.
_WANTED = {
    'a whole number': ('int_type', 'int_from_float'),
    'a number': ('float_type',),
    'a finite number': ('finite_number',),
    'true or false': ('bool_type',),
    'a string': ('string_type',),
    'a path': ('path_type',),
    'a list': ('tuple_type',),
    'a mapping': ('dict_type', 'model_type', 'model_attributes_type'),
    'a level such as p3': ('string_pattern_mismatch',),
}
_TEXTS = {kind: f'expected {wanted}, got {{found}}' for wanted, kinds in _WANTED.items() for kind in kinds} | {
    'missing': 'is missing',
    'string_too_short': 'must not be empty',
    'too_short': 'must have at least {min_length} entries, got {actual_length}',
    'too_long': 'must have at most {max_length} entries, got {actual_length}',
    'greater_than': 'must be greater than {gt:g}, got {found}',
    'greater_than_equal': 'must be at least {ge:g}, got {found}',
    'less_than': 'must be less than {lt:g}, got {found}',
    'less_than_equal': 'must be at most {le:g}, got {found}',
    'literal_error': 'must be {expected}, got {found}',
    'union_tag_invalid': 'loss must be one of {expected_tags}, got the string {tag!r}',
    'union_tag_not_found': 'needs the key `loss`, got {found}',
    'value_error': '{error}',
}

# Augmentations of other trainers.
_GEOMETRIC = re.compile(
    'rotat|scale|crop|mosaic|mixup|cutmix|cutout|eras|copy_?paste|shear|affine|translat|vertical|lsj'
)
_NOT_GEOMETRIC = (
    'geometric augmentation is not possible: a cache holds the maps of the plain and the mirrored image only, and '
    'maps of other views cannot be computed from them; use flip and photometric, and geometry for the size'
)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a stage."""

    place: str  # where its key is set
    key: str  # dotted; empty for the stage as a whole
    text: str  # the value found, what was wanted and, if known, the next step
    error: MtpdError | None = None  # the error that says so, of a stage that cannot be built


class Unbuildable(Exception):
    """A stage has problems, which are recorded."""


class Problems:
    """Collects the problems of a stage while it is built."""

    def __init__(self, place_of: Callable[[str], str]) -> None:
        """Starts empty; `place_of(key)` is where a key of the stage is set."""
        self._place_of = place_of
        self.found: list[Problem] = []

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Records an error of the block for a key and continues; call `require_none` before using its values."""
        try:
            yield
        except MtpdError as error:
            self.found.append(Problem(self._place_of(key), key, ' '.join(str(error).split()), error))

    def require_none(self) -> None:
        """Ends the building of the stage when it has problems."""
        if self.found:
            raise Unbuildable


def raise_problems(problems: Sequence[Problem]) -> None:
    """Raises all problems of stages that cannot be built as one MtpdError; a single one keeps its type."""
    if not problems:
        return
    first = problems[0]
    if len(problems) == 1 and first.error is not None:
        raise type(first.error)(f'{first.place}, {first.key}: {first.text}') from first.error
    raise InputError(table('the stages have', problems)) from first.error


def table(heading: str, problems: Sequence[Problem]) -> str:
    """The problems in columns, with their number at the end of the heading."""
    number = '1 problem' if len(problems) == 1 else f'{len(problems)} problems'
    # Without a header: the first problem is in its place.
    first, *others = [(f'  {one.place}', one.key, one.text) for one in problems]
    return '\n'.join([f'{heading} {number}', *text.table(first, others, num_texts=3)])


def explain(error: ValidationError, content: Any, *, root: yaml.Node, overridden: Sequence[str]) -> list[Problem]:
    """The problems in `content`, the file `root` with the dotted keys `overridden` changed, in the file's order."""
    found = []
    for detail in error.errors(include_url=False):
        if detail['type'] == 'too_short' and len(detail['input']) >= detail['ctx']['min_length']:
            continue  # Only valid entries are counted; the problems of the others are reported separately.
        key = _plain_key(detail, content)
        dotted = '.'.join(str(part) for part in key)
        line = math.inf if _is_overridden(dotted, detail, overridden) else line_of(root, key)
        found.append((line, Problem('--set' if line == math.inf else f'line {line}', dotted, _text(detail, key))))
    return [problem for _, problem in sorted(found, key=lambda one: one[0])]


def _plain_key(detail: ErrorDetails, content: Any) -> Key:
    """The path in the file; pydantic's path also names the members of unions."""
    key: list[str | int] = []
    value = content
    for part in detail['loc']:
        if isinstance(part, int) and isinstance(value, list):
            key.append(part)
            value = value[part] if part < len(value) else None
        elif isinstance(value, dict) and part in value:
            key.append(part)
            value = value[part]
        elif detail['type'] == 'missing' and part == detail['loc'][-1]:
            key.append(part)
    return tuple(key)


def _is_overridden(dotted: str, detail: ErrorDetails, overridden: Sequence[str]) -> bool:
    """Whether the command line set the key, or made a section of it by setting a key inside it."""
    # A key inside a plain value makes a mapping of it.
    by_inner = detail['type'] == 'extra_forbidden' or detail['type'].endswith('_type')
    return any(
        f'{dotted}.'.startswith(f'{changed}.') or (by_inner and changed.startswith(f'{dotted}.'))
        for changed in overridden
    )


def line_of(root: yaml.Node, key: Key) -> int:
    """Line of a key, or of the nearest key around it that the file has."""
    line, node = root.start_mark.line, root
    for part in key:
        if isinstance(node, yaml.MappingNode):
            found = [pair for pair in node.value if pair[0].value == str(part)]
            if not found:
                break
            line, node = found[0][0].start_mark.line, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line
        else:
            break
    return int(line) + 1


def _text(detail: ErrorDetails, key: Key) -> str:
    if detail['type'] == 'extra_forbidden':
        if key[:1] == ('data',) and _GEOMETRIC.search(str(key[-1])):
            return _NOT_GEOMETRIC
        known = _known_keys(detail['loc'][:-1])
        close = difflib.get_close_matches(str(key[-1]), known, n=1)
        return f'unknown key; did you mean {close[0]}?' if close else f'unknown key; known keys are {", ".join(known)}'
    template = _TEXTS.get(detail['type'])
    if template is None:
        return f'{detail["msg"]}, got {_describe(detail["input"])}'
    return template.format(found=_describe(detail['input']), **detail.get('ctx', {}))


def _known_keys(location: Key) -> list[str]:
    """Keys of the section at a location of pydantic's, found in the types of `StageSettings`."""
    sections: list[type[BaseModel]] = [StageSettings]
    for part in location:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        if fields:
            sections = [model for field in fields for model in _models(field.annotation)]
        else:  # The index of a list's item, which has no field, or the kind of a loss, which picks one.
            losses = [section for section in sections if 'loss' in section.model_fields]
            sections = [one for one in losses if part in get_args(one.model_fields['loss'].annotation)] or sections
    return [key for section in sections for key in section.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _describe(value: Any) -> str:
    """A value with its type, since '12' is not 12."""
    if value is None:
        return 'nothing'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'the string {value!r}'
    if isinstance(value, dict):
        return f'a mapping of {", ".join(map(str, value))}' if value else 'an empty mapping'
    if isinstance(value, list):
        return f'the list {value}'
    return str(value)
