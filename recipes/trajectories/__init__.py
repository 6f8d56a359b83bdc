"""What happens to the words of a sentence inside of a model."""
