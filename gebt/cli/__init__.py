"""The command line `gebt`: one module a group of commands, with shared flags and console output."""
