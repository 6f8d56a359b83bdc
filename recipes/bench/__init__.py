"""Speed and memory beside fairseq, transformers and plain PyTorch."""
