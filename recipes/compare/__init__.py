"""Matched experiments: schemes against each other, all else equal."""
