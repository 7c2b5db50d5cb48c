"""Sweeps over data sets, prune ratios, networks and seeds, several jobs at a time: what `gebt sweep` runs."""
