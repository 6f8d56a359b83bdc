"""python -m recipes.wmt14_en_de [STAGE]: from corpus to scores, report and release. `--help` says more."""

import sys

from ..translation.cli import main

if __name__ == "__main__":
    sys.exit(main("wmt14_en_de"))
