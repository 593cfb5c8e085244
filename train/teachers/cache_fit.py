"""Whether a cache can teach on a data set."""

from mtpd.cache import CacheReader
from mtpd.errors import CacheMismatchError
from mtpd_train.data.dataset import DetectionDataset


def require_fit(cache: CacheReader, train_set: DetectionDataset, *, flip: float) -> None:
    """Checks that the cache holds just this data set, in every view that training draws.

    Raises:
        CacheMismatchError: it does not.
    """
    coco = train_set.coco
    data = cache.manifest.description.fingerprint.get('data')
    found = data.get('annotations') if isinstance(data, dict) else None
    if found != coco.sha256:
        raise CacheMismatchError(
            f'{cache.path}: was made from a different annotation file than {coco.path} (sha256 '
            f'{str(found)[:12]}... there, '
            f'{coco.sha256[:12]}... here); extract a cache of this data set'
        )
    missing = [image_id for image_id in train_set.sizes(with_objects=True) if image_id not in cache]
    if missing:
        raise CacheMismatchError(
            f'{cache.path}: lacks {len(missing)} of the images of {coco.path}, the first is {missing[0]}; '
            'extract it without --limit'
        )
    needed = {'plain'} if flip == 0 else {'flip'} if flip == 1 else {'plain', 'flip'}
    lacking = sorted(needed - set(cache.views))
    if lacking:
        raise CacheMismatchError(
            f'{cache.path}: holds the view {", ".join(cache.views)} and data.flip is {flip:g}, which needs '
            f'{lacking[0]}; extract with --views plain,flip, or set data.flip to {int(lacking[0] == "plain")}'
        )
