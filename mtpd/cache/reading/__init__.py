"""Opening a cache and reading maps, believing nothing that the manifest does not vouch for."""
