"""An encoder fine-tuned on GLUE, scored over seeds, compared, and written up for the server."""
