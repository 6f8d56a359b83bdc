"""What the configurations of models for transformers share."""

import contextlib
import math
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from macaron.dynamics.splitting import get_splitting
from macaron.ops.act_dropout import check_activation

# transformers' names of activations that ours computes under another one.
_SAME_ACTIVATION = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}


@strict
class ParticleConfig(PreTrainedConfig):
    """Of layers that integrate: the fields that say how, and what every field of its kind must be.

    Class attributes:
        remedy: what to do instead with a model of another type.

    Fields:
        splitting, solver, depth_rule, dt, multistep_init: see `macaron.dynamics.scheme`.
        stochastic_depth, stochastic_depth_schedule, stochastic_depth_form, stochastic_depth_unit: see
            `macaron.dynamics.noise`.
        layer_norm_eps: of every norm.
    """

    remedy: ClassVar[str] = ""

    splitting: str = "strang"
    solver: str = "euler"
    depth_rule: str = "euler"
    dt: float | int = 1.0
    multistep_init: float | int | str = 0.0
    stochastic_depth: float | int = 0.0
    stochastic_depth_schedule: str = "lm_resnet"
    stochastic_depth_form: str = "scaled"
    stochastic_depth_unit: str = "batch"
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        if __name__.startswith("macaron."):
            kwargs.pop("auto_map", None)  # names files of code that saving an installed model does not write
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration of a `config.json`.

        Raises:
            ValueError: of another kind of model.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"this is the configuration of a model of type {kind!r}, not {cls.model_type!r}; load it with "
                f"transformers' Auto classes, which choose by this type, or {cls.remedy}"
            )
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in transformers; the name of a registered splitting that was given later is written out too."""
        result = super().to_dict()
        with contextlib.suppress(ValueError):  # building a model of it says what is wrong
            result["splitting"] = get_splitting(self.splitting).portable
        return result

    def check_positive(self, *names: str) -> None:
        """
        Raises:
            ValueError: one of these fields is below 1.
        """
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def check_heads(self, width: str, heads: str) -> None:
        """
        Raises:
            ValueError: `width`, a field, does not divide into the number of heads that the field `heads` says.
        """
        if getattr(self, width) % getattr(self, heads):
            raise ValueError(
                f"{width}={getattr(self, width)} does not divide into {heads}={getattr(self, heads)}; choose a width "
                f"that is a multiple of the number of heads"
            )

    def check_rates(self, *names: str) -> None:
        """
        Raises:
            ValueError: one of these fields is no rate of a dropout, nor None.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise ValueError(f"{name}={value} is not a probability in [0, 1); 0 switches it off")

    def check_eps(self) -> None:
        """
        Raises:
            ValueError: `layer_norm_eps` is not positive, or not finite.
        """
        if not 0.0 < self.layer_norm_eps < math.inf:
            raise ValueError(
                f"layer_norm_eps={self.layer_norm_eps} must be positive and finite; it keeps norms from dividing by 0"
            )


def known_activation(name: str) -> str:
    """Our name of an activation.

    Raises:
        ValueError: there is none of this name.
    """
    name = _SAME_ACTIVATION.get(name, name)
    check_activation(name)
    return name


__all__ = ["ParticleConfig", "known_activation"]
