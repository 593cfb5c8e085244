"""The errors that a user can meet, grouped by what a handler would do about them.

    MtpdError                     one line for the user; programs print it and exit with 1
    |-- InputError                a file, option or value given by the user is wrong: fix it and run again
    |-- UnavailableError          something required is missing (network, checkpoint, disk space): provide it
    |-- CacheError                a cache cannot be trusted or does not fit
    |   |-- CacheDamagedError     bytes are missing or changed
    |   |-- CacheIncompleteError  the extraction has not finished
    |   `-- CacheMismatchError    the cache was made from something other than requested
    `-- Interrupted               the user stopped a program; programs exit with 130

Every message names the object, the value found, the value expected and the next step.
"""

__all__ = [
    'CacheDamagedError',
    'CacheError',
    'CacheIncompleteError',
    'CacheMismatchError',
    'InputError',
    'Interrupted',
    'MtpdError',
    'UnavailableError',
]


class MtpdError(Exception):
    """Base of all errors that are meant for the user."""


class InputError(MtpdError, ValueError):
    """A file, option or value that the user gave is wrong."""


class UnavailableError(MtpdError, RuntimeError):
    """Something required is not available: a network, a file, disk space, a package."""


class CacheError(MtpdError):
    """A cache cannot be used."""


# What to do about a damaged file of a cache.
REPAIR = 'repair the cache with mtpd-cache verify --repair'


class CacheDamagedError(CacheError):
    """Bytes of a cache are missing or differ from what was written."""


class CacheIncompleteError(CacheError):
    """An extraction has not finished."""


class CacheMismatchError(CacheError):
    """A cache was made from another teacher, data set, geometry or format than requested."""


class Interrupted(MtpdError):
    """The user stopped the program after it had saved its work; the message says how to resume."""
