"""mtpd distils small object detectors from compressed caches of teacher feature pyramids.

The command lines are in `mtpd_extract` and `mtpd_train`; this package is the library that they share.
"""

__version__ = '0.1.0'
