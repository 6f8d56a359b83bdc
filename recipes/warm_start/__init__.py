"""A published BERT becomes a Macaron: a start near it, then distillation on text without labels."""
