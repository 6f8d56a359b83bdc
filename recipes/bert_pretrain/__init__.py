"""Text files in, a pre-trained Macaron BERT out."""
