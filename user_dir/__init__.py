"""The fairseq plugin: `fairseq-train --user-dir macaron --arch macaron_base …`.

Importing it registers models, criterions and optimisers, prepares fairseq's checkpoint loading, and mends what it can
of fairseq (`patches.py`); importing it twice, also under two names, changes nothing.
"""

from . import checkpoints, criterions, models, optim, patches

checkpoints.install()
patches.install()

__all__ = ["checkpoints", "criterions", "models", "optim", "patches"]
