"""What happens to the words of a sentence inside of a model, as a page and tables."""
