"""What recipes share: the folder that remembers, downloads, provenance, and pieces of a report."""
