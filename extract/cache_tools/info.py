"""`mtpd-cache info`: what a cache is, holds and takes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtpd.cache.checking.state import CacheState, read_state
from mtpd.cache.checking.statistics import CacheStatistics, measure
from mtpd.cache.format.manifest import VERSION
from mtpd.system.files import canonical_json, sha256_bytes
from mtpd.system.text import format_bytes, table

GO_ON = 'run the same mtpd-extract command again to resume'


def run(options: Mapping[str, Any]) -> None:
    """Prints a block for each cache, or a JSON list."""
    records = []
    for number, root in enumerate(options['caches']):
        state = read_state(root)
        statistics = measure(state)
        if options['as_json']:
            records.append(_record(root, state, statistics))
        else:
            print('\n' * bool(number) + '\n'.join([str(root), *_lines(state, statistics)]))
    if options['as_json']:
        print(json.dumps(records, indent=1))


def _lines(state: CacheState, statistics: CacheStatistics) -> list[str]:
    return [
        '  ' + line if line else ''
        for line in [*_facts(state, statistics), '', *_levels(statistics), '', *_shapes(statistics)]
    ]


def _facts(state: CacheState, statistics: CacheStatistics) -> list[str]:
    description, sizes = state.description, statistics.num_bytes
    progress = f'{len(state.committed)} of {state.num_shards} shards committed'
    facts = {
        'state': f'finished, format version {VERSION}' if state.is_finished else f'unfinished, {progress}; {GO_ON}',
        'images': _images(state, statistics),
        'views': ', '.join(description.views),
        'size': f'{format_bytes(sum(sizes.values()))}: '
        + ', '.join(
            f'{kind.replace("_", " ")} {format_bytes(num_bytes)}' for kind, num_bytes in sizes.items() if num_bytes
        ),
        'codec': _codec(state, statistics),
        'geometry': _geometry(state),
        'teacher': f'{description.provenance.get("teacher", "unknown")}, fingerprint {_fingerprint(state)[:12]}',
        'made on': _made_on(description.provenance),
    }
    return [f'{name:<9} {value}' for name, value in facts.items()]


def _levels(statistics: CacheStatistics) -> list[str]:
    return table(
        ['level', 'stride', 'channels', 'elements', 'size', 'bits/element'],
        [
            [
                one.level.name,
                str(one.level.stride),
                str(one.level.channels),
                f'{one.num_elements:,}',
                format_bytes(one.num_bytes),
                _bits(one.bits_per_element),
            ]
            for one in statistics.levels
        ],
    )


def _shapes(statistics: CacheStatistics) -> list[str]:
    return table(
        ['padded shape', 'images', 'shards', 'size'],
        [
            ['x'.join(map(str, one.padded)), f'{one.num_images:,}', f'{one.num_shards:,}', format_bytes(one.num_bytes)]
            for one in statistics.shapes
        ],
    )


def _images(state: CacheState, statistics: CacheStatistics) -> str:
    """How many, and the share of the annotation file that they are."""
    num_images, provenance = statistics.num_images, state.description.provenance
    source, annotated = provenance.get('annotations', 'the annotation file'), provenance.get('annotated_images')
    text = f'{num_images:,}'
    if annotated == num_images:
        text = f'{num_images:,}, all of {source}'
    elif isinstance(annotated, int) and annotated > 0:
        text = f'{num_images:,} of {annotated:,} ({100 * num_images / annotated:.1f} %) of {source}'
    return text if state.is_finished else f'{text}; {statistics.num_committed_images:,} committed'


def _codec(state: CacheState, statistics: CacheStatistics) -> str:
    description = state.description
    target = '' if description.target_error is None else f', relative squared error of {description.target_error:g}'
    return f'{description.codec}{target}, {_bits(statistics.bits_per_element)} bits per element'


def _geometry(state: CacheState) -> str:
    geometry = state.description.geometry
    ratio = 'aspect ratio kept' if geometry.keep_ratio else 'aspect ratio not kept'
    least = geometry.pad_size
    padded = f'at least {least[1]}x{least[0]}, ' if least else ''
    scale = 'x'.join(map(str, geometry.scale))
    square = 'squares of ' if geometry.pad_square else ''
    rarer = geometry.to_geometry().to_dict().keys() - {'scale', 'keep_ratio', 'pad_divisor', 'pad_size', 'pad_square'}
    stated = ''.join(f', {name} {getattr(geometry, name)}' for name in sorted(rarer))
    return f'scale {scale}, {ratio}, padded to {padded}{square}multiples of {geometry.pad_divisor} px{stated}'


def _made_on(provenance: Mapping[str, Any]) -> str:
    versions = provenance.get('versions')
    listed = [f'{name} {version}' for name, version in versions.items()] if isinstance(versions, dict) else []
    return ', '.join([str(provenance.get('device', 'unknown device')), *listed])


def _fingerprint(state: CacheState) -> str:
    return sha256_bytes(canonical_json(state.description.fingerprint))


def _bits(bits: float | None) -> str:
    return '-' if bits is None else f'{bits:.2f}'


def _record(root: Path, state: CacheState, statistics: CacheStatistics) -> dict[str, Any]:
    """What `--json` gives for a cache."""
    description = state.description.model_dump(mode='json')
    levels = [
        {
            **vars(one.level),
            'elements': one.num_elements,
            'bytes': one.num_bytes,
            'bits_per_element': one.bits_per_element,
        }
        for one in statistics.levels
    ]
    shapes = [
        {
            'padded': one.padded,
            'images': one.num_images,
            'committed_images': one.num_committed_images,
            'shards': one.num_shards,
            'bytes': one.num_bytes,
        }
        for one in statistics.shapes
    ]
    return {
        'path': str(root),
        'version': VERSION,
        'finished': state.is_finished,
        'images': statistics.num_images,
        'committed_images': statistics.num_committed_images,
        'shards': state.num_shards,
        'committed_shards': len(state.committed),
        'bytes': statistics.num_bytes | {'all': sum(statistics.num_bytes.values())},
        'bits_per_element': statistics.bits_per_element,
        'levels': levels,
        'shapes': shapes,
        'fingerprint_sha256': _fingerprint(state),
        **{
            name: description[name]
            for name in ('codec', 'target_error', 'views', 'geometry', 'fingerprint', 'provenance')
        },
    }
