"""The errors that a user can meet, grouped by what a handler would do about them.

    MtpdError                     one line for the user; programs print it and exit with 1
    |-- InputError                a file, option or value that the user gave is wrong: correct it and run again
    |-- UnavailableError          something needed is not there (a network, a checkpoint, disk space): fetch it
    `-- CacheError                a cache cannot be trusted or does not fit
        |-- CacheDamagedError     bytes are missing or changed
        |-- CacheIncompleteError  the extraction has not finished
        `-- CacheMismatchError    the cache was made from something else than what is asked of it

Every message names the thing, the value found, the value wanted and the next step.
"""


class MtpdError(Exception):
    """Base of all errors that are meant for the user."""


class InputError(MtpdError, ValueError):
    """A file, option or value that the user gave is wrong."""


class UnavailableError(MtpdError, RuntimeError):
    """Something that is needed cannot be had: a network, a file, disk space, a package."""


class CacheError(MtpdError):
    """A cache cannot be used."""


# What to do about a damaged file of a cache.
REPAIR = 'mend the cache with mtpd-cache verify --repair'


class CacheDamagedError(CacheError):
    """Bytes of a cache are missing or differ from what was written."""


class CacheIncompleteError(CacheError):
    """An extraction has not finished."""


class CacheMismatchError(CacheError):
    """A cache was made from another teacher, data set, geometry or format than is asked of it."""
