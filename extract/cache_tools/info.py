"""`mtpd-cache info`: teacher, contents and disk use of a cache, from its records only; maps are not read."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtpd.cache.checking import CacheState, read_state
from mtpd.cache.format.arrays import file_place
from mtpd.cache.format.manifest import TEACHER_FILE, VERSION
from mtpd.cache.format.plan import ShardKey, num_elements
from mtpd.cache.format.strict_json import short
from mtpd.cache.format.tensor_files import BASIS_FILE
from mtpd.system.files import canonical_json, is_url, sha256_bytes
from mtpd.system.text import format_bytes, table

KINDS = ('maps', 'row_tables', 'rois', 'index', 'teacher_weights', 'rotations', 'metadata')


def run(caches: Sequence[Path | str], *, as_json: bool) -> None:
    records = []
    for number, root in enumerate(caches):
        record = describe_cache(read_state(root))
        if as_json:
            records.append(record)
        else:
            lines = [str(root), *(f'  {line}' if line else '' for line in _lines(record))]
            print('\n' * bool(number) + '\n'.join(lines))
    if as_json:
        print(json.dumps(records, indent=1))


def describe_cache(state: CacheState) -> dict[str, Any]:
    """What `--json` prints. Bytes and elements of an unfinished cache are those of its committed shards.

    `metadata` are the bytes of all files of no other kind, in a folder; `elements` are feature values in all views.
    """
    description, buckets = state.manifest.description, state.manifest.buckets
    levels = [level.to_level() for level in description.levels]
    kinds = dict.fromkeys(KINDS, 0)
    of_level: Counter[str] = Counter()
    of_bucket: Counter[str] = Counter()
    keys: set[ShardKey] = set()
    for file, one in state.manifest.files.items():
        place = file_place(file)
        if place is None:
            kinds[{TEACHER_FILE: 'teacher_weights', BASIS_FILE: 'rotations'}.get(file, 'index')] += one.num_bytes
            continue
        keys.add(place.key)
        of_bucket[place.key.bucket] += one.num_bytes
        # An array of a level: its codes, or their scale.
        level = next((level.name for level in levels if level.name == place.array.split('.')[0]), None)
        kinds['rois' if not place.view else 'row_tables' if level is None else 'maps'] += one.num_bytes
        if level is not None:
            of_level[level] += one.num_bytes
    if not is_url(state.name):  # a web server does not list its files
        kinds['metadata'] = max(0, sum(state.folder.files().values()) - sum(kinds.values()))
    committed: Counter[str] = Counter()
    for bucket in buckets:
        shards = (shard for name, shard in keys if name == bucket.name)
        committed[bucket.name] = sum(len(bucket.rows(shard)) for shard in shards)
    elements = {
        level.name: len(description.views)
        * sum(committed[bucket.name] * num_elements([level], bucket.padded) for bucket in buckets)
        for level in levels
    }
    stated = description.model_dump(mode='json')
    return {
        'path': state.name,
        'version': VERSION,
        'finished': state.is_finished,
        'images': state.manifest.num_images,
        'committed_images': sum(committed.values()),
        'shards': state.num_shards,
        'committed_shards': len(state.committed),
        'bytes': kinds | {'all': sum(kinds.values())},
        'bits_per_element': _bits(kinds['maps'], sum(elements.values())),
        'levels': [
            {
                **vars(level),
                'elements': elements[level.name],
                'bytes': of_level[level.name],
                'bits_per_element': _bits(of_level[level.name], elements[level.name]),
            }
            for level in levels
        ],
        'shapes': [
            {
                'padded': bucket.padded,
                'images': bucket.num_images,
                'committed_images': committed[bucket.name],
                'shards': bucket.num_shards,
                'bytes': of_bucket[bucket.name],
            }
            for bucket in buckets
        ],
        'fingerprint_sha256': sha256_bytes(canonical_json(description.fingerprint)),
        **{name: stated[name] for name in ('codec', 'target_error', 'views', 'geometry', 'fingerprint', 'provenance')},
    }


def _bits(num_bytes: int, num_elements: int) -> float | None:
    return 8 * num_bytes / num_elements if num_elements else None


def _lines(record: dict[str, Any]) -> list[str]:
    provenance, sizes = record['provenance'], record['bytes']
    state, codec = f'finished, format version {record["version"]}', record['codec']
    if not record['finished']:
        progress = f'{record["committed_shards"]} of {record["shards"]} shards committed'
        state = f'unfinished, {progress}; run the same mtpd-extract command again to resume'
    if record['target_error'] is not None:
        codec += f', relative squared error of {record["target_error"]:g}'
    kinds = [f'{kind.replace("_", " ")} {format_bytes(size)}' for kind, size in sizes.items() if size and kind != 'all']
    versions = provenance.get('versions')
    listed = [f'{name} {version}' for name, version in versions.items()] if isinstance(versions, dict) else []
    facts = {
        'state': state,
        'images': _images(record),
        'views': ', '.join(record['views']),
        'size': f'{format_bytes(sizes["all"])}: {", ".join(kinds)}',
        'codec': f'{codec}, {_two_digits(record["bits_per_element"])} bits per element',
        'geometry': _geometry(record['geometry']),
        'teacher': f'{provenance.get("teacher", "unknown")}, fingerprint {record["fingerprint_sha256"][:12]}',
        'licence': short(provenance.get('license', 'not stated')),
        'made on': ', '.join([str(provenance.get('device', 'unknown device')), *listed]),
    }
    levels = [
        [
            *(str(one[name]) for name in ('name', 'stride', 'channels')),
            f'{one["elements"]:,}',
            format_bytes(one['bytes']),
            _two_digits(one['bits_per_element']),
        ]
        for one in record['levels']
    ]
    shapes = [
        ['x'.join(map(str, one['padded'])), f'{one["images"]:,}', f'{one["shards"]:,}', format_bytes(one['bytes'])]
        for one in record['shapes']
    ]
    return [
        *(f'{name:<9} {value}' for name, value in facts.items()),
        '',
        *table(['level', 'stride', 'channels', 'elements', 'size', 'bits/element'], levels),
        '',
        *table(['padded shape', 'images', 'shards', 'size'], shapes),
    ]


def _images(record: dict[str, Any]) -> str:
    """How many, and the share of the annotation file that they are."""
    num_images, provenance = record['images'], record['provenance']
    source, annotated = provenance.get('annotations', 'the annotation file'), provenance.get('annotated_images')
    text = f'{num_images:,}'
    if annotated == num_images:
        text = f'{num_images:,}, all of {source}'
    elif isinstance(annotated, int) and annotated > 0:
        text = f'{num_images:,} of {annotated:,} ({100 * num_images / annotated:.1f} %) of {source}'
    return text if record['finished'] else f'{text}; {record["committed_images"]:,} committed'


def _geometry(geometry: dict[str, Any]) -> str:
    ratio = 'aspect ratio kept' if geometry['keep_ratio'] else 'aspect ratio not kept'
    least = geometry['pad_size']
    padded = f'at least {least[1]}x{least[0]}, ' if least else ''
    scale = 'x'.join(map(str, geometry['scale']))
    square = 'squares of ' if geometry.get('pad_square') else ''
    rarer = geometry.keys() - {'scale', 'keep_ratio', 'pad_divisor', 'pad_size', 'pad_square'}
    stated = ''.join(f', {name} {geometry[name]}' for name in sorted(rarer))
    return f'scale {scale}, {ratio}, padded to {padded}{square}multiples of {geometry["pad_divisor"]} px{stated}'


def _two_digits(bits: float | None) -> str:
    return '-' if bits is None else f'{bits:.2f}'
