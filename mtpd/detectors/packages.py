"""What to do about an optional package that is not installed."""

import re

# Packages that mmdet and its relatives use where they are installed. Only these are advised: on the
# package index, the name of another module may belong to anyone.
PACKAGES = (
    'albumentations', 'cityscapesscripts', 'emoji', 'fairscale', 'imagecorruptions', 'instaboostfast', 'lvis',
    'mmpretrain', 'motmetrics', 'nltk', 'prettytable', 'scikit-image', 'scikit-learn', 'timm', 'transformers',
)  # fmt: skip
# Import names that differ from those of the packages.
_IMPORTED_AS = {'skimage': 'scikit-image', 'sklearn': 'scikit-learn'}
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
    distribution = _IMPORTED_AS.get(package, package)
    if distribution in PACKAGES:
        return f'the package {package}, which is not installed: pip install {distribution}'
    asked = next((found.group(1) for one in chain if (found := _NOT_IMPORTED.search(str(one)))), '')
    if asked == name or asked.startswith(f'{name}.'):
        return f'{asked} of its custom_imports, which is not found; add its folder to PYTHONPATH'
    return f'the {"module" if "." in name else "package"} {name}, which is not installed'
