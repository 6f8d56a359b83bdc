"""What fairseq opens for `--user-dir macaron`: it imports every file of this folder."""
