"""Matched experiments: splittings and other variants of the scheme against each other at equal parameters, data and
order of data, and at equal updates or equal cost."""
