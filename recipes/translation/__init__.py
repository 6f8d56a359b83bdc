"""Translation from any language to any other, learned from a corpus of your own."""
