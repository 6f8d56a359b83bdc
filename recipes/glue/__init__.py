"""An encoder fine-tuned on GLUE, scored, compared and submitted."""
