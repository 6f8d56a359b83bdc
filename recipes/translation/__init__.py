"""What the translation recipes share: data, text, training, scores, report, release."""
