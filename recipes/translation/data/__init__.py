"""From archives or folders of text to fairseq's binary format."""
