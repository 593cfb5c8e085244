"""The format of a cache on disk: plan, arrays, codecs, shards, manifest. Does not read or write data itself."""
