"""Comparisons over data sets, ratios, networks and seeds, several at a time: `gebt sweep`."""
