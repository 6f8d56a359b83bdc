"""Matched experiments: splittings against each other at equal parameters, data, order of data and updates."""
