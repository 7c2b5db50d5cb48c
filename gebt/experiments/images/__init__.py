"""Runs over networks for images: what `gebt early-bird`, `gebt lottery` and `gebt init-prune` do."""
