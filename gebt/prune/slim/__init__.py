"""Structured pruning: traces the channels of a network and removes the pruned ones from its layers."""
