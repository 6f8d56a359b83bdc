"""LM-ResNet over paired seeds, and YOPO against PGD: the talk's tables of image classification."""
