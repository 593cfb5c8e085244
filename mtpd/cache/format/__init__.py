"""What a cache is on disk: plan, arrays, codecs, shards, manifest. Reads and writes no data by itself."""
