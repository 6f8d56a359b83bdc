"""PDE-Net 2.0: equations learned from fields, read back, and rolled out."""
