"""The fairseq plugin: `fairseq-train --user-dir macaron --arch macaron_base …`.

Importing it registers models, criterions and optimisers, and prepares fairseq's checkpoint loading; importing it
twice, also under two names, changes nothing.
"""

from . import checkpoints, criterions, models, optim

checkpoints.install()

__all__ = ["checkpoints", "criterions", "models", "optim"]
