"""Speed and memory beside fairseq, transformers and PyTorch."""
