"""What models for transformers share, whatever they are made of."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from macaron.hf.context import IsRecorded
from macaron.hf.loading import check_names, listed


class ParticleModel(PreTrainedModel):
    """A model that is loaded whole or not at all, and pickled whole.

    Class attributes:
        always_there: the parts that every checkpoint has, by the first component of their parameters' names.
    """

    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    always_there: ClassVar[tuple[str, ...]] = ()

    def __getstate__(self) -> dict[str, Any]:
        # transformers' hooks, there once hidden states or attentions were asked for, cannot be pickled; they come back
        return {**super().__getstate__(), "_output_capturing_hooks_installed": False}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but nothing is left random or out in silence, save new heads and those of another model.

        With `output_loading_info=True` the lists come back instead of the error, and the model with them.

        Raises:
            ValueError: the checkpoint lacks parameters of the encoder (and decoder), or some of a head's, or all of
                them though it was saved by this class; it has others than those here, or is damaged; or it is of
                another `model_type`.
            RuntimeError: tensors of another size, without `ignore_mismatched_sizes=True`.
        """
        config, source = kwargs.get("config"), pretrained_model_name_or_path
        where = "the state_dict" if source is None else str(source)
        kind = getattr(config, "model_type", cls.config_class.model_type)
        if kind != cls.config_class.model_type:
            raise ValueError(
                f"{cls.__name__} takes a {cls.config_class.__name__}, not one of model_type={kind!r}; to "
                f"{cls.config_class.remedy}"
            )
        told = kwargs.pop("output_loading_info", False)
        ignore = kwargs.pop("ignore_mismatched_sizes", False)
        fresh = kwargs.get("state_dict") == {}  # asks for a new model
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            model, report = super().from_pretrained(source, *args, **options)
        except SafetensorError as error:
            raise ValueError(f"{where}: its weights cannot be read ({error}); copy or download it again") from error
        if report["mismatched_keys"] and not ignore:
            sizes = [f"{name} {tuple(there)} for {tuple(here)}" for name, there, here in report["mismatched_keys"]]
            raise RuntimeError(
                f"{where} does not fit {cls.__name__} and its configuration: it has {listed(sizes)}; if these are to "
                f"begin anew, add ignore_mismatched_sizes=True"
            )
        if cls.can_generate() and Path(where, kwargs.get("subfolder") or "", GENERATION_CONFIG_NAME).is_file():
            GenerationConfig.from_pretrained(source, **_of_place(kwargs))  # or a damaged one is left out in silence
        if not told and not fresh:
            stored = {} if source is None else PreTrainedConfig.get_config_dict(source, **_of_place(kwargs))[0]
            if source is not None:
                report["missing_keys"] = set(cls.lacking(report["missing_keys"], stored, model.config))
            own = not isinstance(config, PreTrainedConfig) or config._name_or_path == str(source)
            saved_by = (model.config.architectures or []) if own else []
            check_names(model, report, where, complete=cls.__name__ in saved_by, encoder=cls.always_there)
        return (model, report) if told else model

    @classmethod
    def lacking(cls, missing: Iterable[str], stored: dict[str, Any], config: Any) -> Iterable[str]:
        """Those of the `missing` parameters that a checkpoint should have had.

        Args:
            stored: the checkpoint's `config.json`; config: the model's configuration.
        """
        return missing


class Step(IsRecorded):
    """From the state before and after a step in depth to that after, where hidden states are recorded: a rule across
    depth makes other states than its layers do."""

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return after


def _of_place(kwargs: dict[str, Any]) -> dict[str, Any]:
    """What says where a model is, of the arguments of `from_pretrained`."""
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {name: kwargs[name] for name in names if name in kwargs}


__all__ = ["ParticleModel", "Step"]
