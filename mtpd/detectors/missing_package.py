"""Message for a package or module that cannot be imported."""

import re

# Import name -> distribution, of what mmdet and its relatives use where it is installed. Only these are advised:
# anybody may own the name of some other module on the package index.
DISTRIBUTIONS = {
    'albumentations': 'albumentations',
    'cityscapesscripts': 'cityscapesscripts',
    'emoji': 'emoji',
    'fairscale': 'fairscale',
    'imagecorruptions': 'imagecorruptions',
    'instaboostfast': 'instaboostfast',
    'lvis': 'lvis',
    'mmpretrain': 'mmpretrain',
    'motmetrics': 'motmetrics',
    'nltk': 'nltk',
    'prettytable': 'prettytable',
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'timm': 'timm',
    'transformers': 'transformers',
}
_NOT_IMPORTED = re.compile(r'^Failed to import ([\w.]+)$')  # mmengine, of a config's custom_imports
_ADVISED = re.compile(r'pip install ["\']?([\w.-]+)')


def missing_package(error: ImportError) -> str:
    """What is missing and what to do about it, to follow the words 'config X needs'."""
    chain: list[BaseException] = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    cause = chain[-1]
    advised = next((found.group(1) for one in chain if (found := _ADVISED.search(str(one)))), None)
    name = cause.name if isinstance(cause, ModuleNotFoundError) and cause.name else advised
    if name is None:
        return f'a package that cannot be imported: {" ".join(str(cause).split()) or "no message"}'
    package = name.split('.')[0]
    if package in DISTRIBUTIONS:
        return f'the package {package}, which is not installed: pip install {DISTRIBUTIONS[package]}'
    if package in DISTRIBUTIONS.values():
        return f'the package {package}, which is not installed: pip install {package}'
    asked = next((found.group(1) for one in chain if (found := _NOT_IMPORTED.search(str(one)))), '')
    if asked == name or asked.startswith(f'{name}.'):
        return f'{asked} of its custom_imports, which is not found; add its folder to PYTHONPATH'
    return f'the {"module" if "." in name else "package"} {name}, which is not installed'
