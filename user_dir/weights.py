"""Loading weights: names of the original and of fairseq, and what is wrong with weights that do not fit."""

import logging
import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from fairseq.dataclass import FairseqDataclass
from torch import Tensor, nn

from macaron.names import is_foreign, to_particle_names

from .pruning import SIDES, kept_layers, prune


class ParticleWeights:
    """Goes in front of one of fairseq's model classes: `load_state_dict` takes foreign names and explains failures.

    A model that is ready to generate goes through pickle as any other.
    """

    _is_generation_fast: bool

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> None:
        if is_foreign(state_dict):
            converted = to_particle_names(state_dict)
            state_dict.clear()
            state_dict.update(converted)
        super().upgrade_state_dict_named(state_dict, name)

    def load_state_dict(
        self,
        state_dict: dict[str, Tensor],
        strict: bool = True,
        model_cfg: FairseqDataclass | None = None,
        args: Namespace | None = None,
    ) -> Any:
        """As fairseq's, pruned as the model was, and with an error that says what differs.

        Raises:
            ValueError: vocabularies or an architecture that do not match, or layers to keep that are not there.
        """
        state_dict = with_numerics(self, prune(state_dict, getattr(self, "args", None)))
        try:
            return super().load_state_dict(state_dict, strict)
        except RuntimeError as error:
            check_state_dict(self, state_dict, error)
            raise

    def make_generation_fast_(self, **kwargs: Any) -> None:
        super().make_generation_fast_(**kwargs)
        vars(self).pop("train", None)  # a local function of fairseq's, which pickle cannot take

    def train(self, mode: bool = True) -> Any:
        """As `torch.nn.Module.train`, until the model has been made fast for generation."""
        if mode and self._is_generation_fast:
            raise RuntimeError("cannot train after make_generation_fast")
        return super().train(mode)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None


# Weights of the rule across depth, and of the solver.
_LEARNED = tuple(re.compile(rf"(?:encoder|decoder)\.layers\.{part}\.") for part in ("rule", r"\d+\.gates"))


def with_numerics(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a model whose rule or solver has no parameters, for one where it has: those begin as they are.

    So a trained model goes on with another rule or solver.
    """
    own = model.state_dict()
    begun: dict[str, Tensor] = {}
    for learned in _LEARNED:
        if not any(learned.match(name) for name in state_dict):
            begun |= {name: value for name, value in own.items() if learned.match(name)}
    if not begun:
        return state_dict
    logging.getLogger(__name__).info(
        "the checkpoint has no parameters of a rule across depth or a solver: %s begin anew", ", ".join(begun)
    )
    return {**state_dict, **begun}


def check_state_dict(model: nn.Module, state_dict: dict[str, Tensor], error: Exception) -> None:
    """Explain why `state_dict` did not load into `model`.

    Raises:
        ValueError: vocabularies that differ in size, a rule of another depth, or another architecture.
    """
    own = model.state_dict()
    for side, which in (("encoder", "source"), ("decoder", "target")):
        name = f"{side}.embed_tokens.weight"
        if name in own and name in state_dict and own[name].size(0) != state_dict[name].size(0):
            raise ValueError(
                f"the checkpoint was trained with a {which} vocabulary of {state_dict[name].size(0)} symbols, but the "
                f"dictionary in the data folder has {own[name].size(0)}; use the dict.*.txt files that it was trained "
                f"with (fairseq-preprocess --srcdict/--tgtdict binarises new text with them)"
            ) from error
    for side in SIDES:
        rule = f"{side}.layers.rule."
        other = [n for n in {**state_dict, **own} if n.startswith(rule) and _shape(state_dict, n) != _shape(own, n)]
        if other and (kept := kept_layers(getattr(model, "args", None), side)):
            raise ValueError(
                f"--{side}-layers-to-keep {','.join(map(str, kept))}: the rule across depth (--depth-rule "
                f"{model.args.depth_rule}) has parameters for the number of layers that it was trained with "
                f"({', '.join(f'{n} {_shape(state_dict, n)} for {_shape(own, n)}' for n in other[:3])}), and none "
                f"for those that are kept alone; prune a model whose rule has none, or train one of this depth anew"
            ) from error
    missing = [name for name in own if name not in state_dict]
    unexpected = [name for name in state_dict if name not in own]
    shapes = [
        f"{name} {tuple(state_dict[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state_dict and own[name].shape != state_dict[name].shape
    ]
    found = "; ".join(
        f"{what}: {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("not expected", unexpected), ("other shape", shapes))
        if names
    )
    raise ValueError(
        f"the checkpoint holds another architecture than the model ({found}); build the model with the --arch, "
        f"--splitting and sizes that the checkpoint was trained with"
    ) from error
