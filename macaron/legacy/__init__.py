"""Checkpoints of the original Macaron Net implementation, converted to this project's layouts."""
