"""python -m recipes.translation --source-lang X --target-lang Y --data-dir DIR: any corpus. `--help` says more."""

import sys

from .cli import main
from .recipe import OWN

if __name__ == "__main__":
    sys.exit(main(OWN))
