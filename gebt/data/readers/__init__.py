"""Readers of raw files, one module a format: Planetoid, npz, OGB, TU, PyG, and folders of custom graphs."""
