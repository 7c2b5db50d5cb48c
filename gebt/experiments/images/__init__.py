"""Experiments with image networks: what `gebt early-bird`, `gebt lottery` and `gebt init-prune` run."""
