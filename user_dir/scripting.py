"""Scripts of a model leave the model as it is."""

from copy import copy
from typing import Any

from torch import nn


class KeptByScripting(nn.Module):
    """TorchScript writes what a part hands over for itself (`Depth` a plain list) into the module that holds the part.

    So whoever is scripted, or holds such a part, hands over a copy with a table of parts of its own.
    """

    def __prepare_scriptable__(self) -> Any:
        handed_over = copy(self)
        vars(handed_over)["_modules"] = dict(self._modules)
        return handed_over
