"""mtpd distils small object detectors from compressed caches of teacher feature pyramids.

This package is the library that the programs in `mtpd_extract` and `mtpd_train` share. Its public names are those in
`__all__` of `mtpd.cache`, `mtpd.detectors`, `mtpd.errors`, `mtpd.geometry`, `mtpd.losses` and `mtpd.ordering`.
"""

__version__ = '0.1.0'
