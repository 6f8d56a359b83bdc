"""PDE-Net 2.0: equations learned from fields, and rolled out."""
