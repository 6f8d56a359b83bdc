"""fairseq's label-smoothed cross-entropy, with the original's way to spread the smoothing as a choice."""

from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import CRITERION_REGISTRY, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion as FairseqCriterion,
)
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

NAME = "macaron_label_smoothed_cross_entropy"


@dataclass
class MacaronLabelSmoothedCrossEntropyConfig(LabelSmoothedCrossEntropyCriterionConfig):
    smoothing_over: ChoiceEnum(["others", "all"]) = field(  # type: ignore[valid-type]
        default="others",
        metadata={
            "help": "which symbols share the smoothing mass: 'others' = all but the target, as in fairseq today; "
            "'all' = the whole vocabulary, as in the original Macaron Net and in torch"
        },
    )


class LabelSmoothedCrossEntropyCriterion(FairseqCriterion):
    """Cross-entropy against smoothed targets, summed over the real target tokens.

        others   (1 − ε) nll + ε/(V−1) Σ_{j ≠ target} (−log p_j)
        all      (1 − ε) nll + ε/V Σ_j (−log p_j)

    Both agree at ε·(V−1)/V. The class keeps fairseq's name, which its checkpoints record, so that training goes on
    from a checkpoint under either criterion.
    """

    def __init__(self, *args: Any, smoothing_over: str = "others", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_smoothing = self.eps
        self.smoothing_over = str(smoothing_over)

    @classmethod
    def build_criterion(cls, cfg: MacaronLabelSmoothedCrossEntropyConfig, task: Any) -> "FairseqCriterion":
        return cls(
            task,
            cfg.sentence_avg,
            cfg.label_smoothing,
            cfg.ignore_prefix_size,
            cfg.report_accuracy,
            smoothing_over=cfg.smoothing_over,
        )

    def compute_loss(self, model: Any, net_output: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, Tensor]:
        if self.smoothing_over == "all":
            size = net_output[0].size(-1)
            self.eps = self.label_smoothing * (size - 1) / size
        return super().compute_loss(model, net_output, sample, reduce=reduce)


if NAME not in CRITERION_REGISTRY:  # the plugin may be imported under two names
    register_criterion(NAME, dataclass=MacaronLabelSmoothedCrossEntropyConfig)(LabelSmoothedCrossEntropyCriterion)
