"""Caches of other projects, imported by `tools/cache.py convert`."""
