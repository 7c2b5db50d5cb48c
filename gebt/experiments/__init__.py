"""Experiments: options, setup, comparison of variants over seeds, records and reports."""
