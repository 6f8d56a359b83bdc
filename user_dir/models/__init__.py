"""The models; importing this package registers them with fairseq."""

from .macaron import MacaronModel
from .macaron_lm import MacaronLanguageModel

__all__ = ["MacaronLanguageModel", "MacaronModel"]
