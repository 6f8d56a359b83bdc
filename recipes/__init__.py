"""Whole jobs: prepare, train, evaluate, report. Each folder has one entry point."""
