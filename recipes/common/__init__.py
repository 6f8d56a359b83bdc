"""What recipes share: the folder that remembers, fairseq's commands, provenance, and pieces of a report."""
