"""Text files in, a Macaron BERT out: tokenizer, masked-language-model training, model folder and card."""
