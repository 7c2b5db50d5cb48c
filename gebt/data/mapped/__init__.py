"""Graphs larger than memory: converted on disk by external sorting, then memory-mapped."""
