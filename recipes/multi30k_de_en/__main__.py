"""python -m recipes.multi30k_de_en [STAGE]: from the corpus to scores, a report and a released model. `--help` says more."""

import sys

from recipes.translation.cli import main

if __name__ == "__main__":
    sys.exit(main("multi30k_de_en"))
