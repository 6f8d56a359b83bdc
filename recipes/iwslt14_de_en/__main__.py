"""python -m recipes.iwslt14_de_en [STAGE]: from corpus to scores, report and release. `--help` says more."""

import sys

from ..translation.cli import main

if __name__ == "__main__":
    sys.exit(main("iwslt14_de_en"))
