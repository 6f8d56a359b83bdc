"""fairseq's label-smoothed cross-entropy without its logits; R-Drop and the original's smoothing as options."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY, register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion as FairseqCriterion,
)
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.distributed import FullyShardedDataParallel
from fairseq.logging import metrics
from torch import Tensor, nn

from macaron.ops.linear_cross_entropy import linear_cross_entropy

from ..config import choices
from ..graphs import Graphs
from .rdrop import duplicate, linear_symmetric_kl

NAME = "macaron_label_smoothed_cross_entropy"


SmoothingOverChoice = choices("SmoothingOverChoice", ["others", "all"])


@dataclass
class MacaronLabelSmoothedCrossEntropyConfig(LabelSmoothedCrossEntropyCriterionConfig):
    smoothing_over: SmoothingOverChoice = field(  # type: ignore[valid-type]
        default="others",
        metadata={
            "help": "which symbols share the smoothing mass: 'others' = all but the target, as in fairseq today; "
            "'all' = the whole vocabulary, as in the original Macaron Net and in torch"
        },
    )
    rdrop_alpha: float = field(
        default=0.0,
        metadata={
            "help": "weight of the divergence between two passes under two dropout masks (R-Drop); "
            "0 = one pass; 5 is usual for translation"
        },
    )
    cuda_graphs: int = field(
        default=0,
        metadata={
            "help": "shapes of batches of which forward and backward are recorded as CUDA graphs, at most; with "
            "--num-batch-buckets, so that shapes come back; 0 = none"
        },
    )


class LabelSmoothedCrossEntropyCriterion(FairseqCriterion):
    """Cross-entropy against smoothed targets, summed over the real target tokens.

        others   (1 − ε) nll + ε/(V−1) Σ_{j ≠ target} (−log p_j)
        all      (1 − ε) nll + ε/V Σ_j (−log p_j)
        R-Drop   both passes' losses + α (KL(p‖q) + KL(q‖p)) / 2          in training (arXiv:2106.14448)

    The first two agree at ε·(V−1)/V. The model is asked for its features, and the output projection and the loss are
    computed a chunk of tokens at a time, so that the (tokens × V) logits never exist; an adaptive softmax,
    `--report-accuracy` and sharded parameters need fairseq's own way, which is then taken. The class keeps fairseq's
    name, which its checkpoints record, so that training goes on from a checkpoint under either criterion.

    Raises:
        ValueError: a negative α, or R-Drop where the logits are needed.
    """

    def __init__(
        self,
        *args: Any,
        smoothing_over: str = "others",
        rdrop_alpha: float = 0.0,
        cuda_graphs: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if rdrop_alpha < 0:
            raise ValueError(f"--rdrop-alpha {rdrop_alpha} must not be negative; 0 switches R-Drop off")
        self.label_smoothing = self.eps
        self.smoothing_over = str(smoothing_over)
        self.rdrop_alpha = rdrop_alpha
        self.graphs = Graphs(cuda_graphs)

    @classmethod
    def build_criterion(cls, cfg: MacaronLabelSmoothedCrossEntropyConfig, task: Any) -> "FairseqCriterion":
        return cls(
            task,
            cfg.sentence_avg,
            cfg.label_smoothing,
            cfg.ignore_prefix_size,
            cfg.report_accuracy,
            smoothing_over=cfg.smoothing_over,
            rdrop_alpha=cfg.rdrop_alpha,
            cuda_graphs=cfg.cuda_graphs,
        )

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, dict[str, Any]]:
        """The loss, its sample size, and what to log; without `reduce` one loss a target token, (B · T,).

        Under R-Drop the loss, as in fairseq, is that of both passes, and the logged nll that of one.
        """
        losses = None if not reduce else self.graphs(model, sample, lambda batch: self._losses(model, batch, True))
        losses = losses or self._losses(model, sample, reduce)
        if losses is None:
            return super().forward(model, sample, reduce=reduce)
        loss, logged = losses
        sentences = sample["target"].size(0)
        sample_size = sentences if self.sentence_avg else sample["ntokens"]
        log = {"loss": loss.detach(), **logged, "ntokens": sample["ntokens"]}
        return loss, sample_size, {**log, "nsentences": sentences, "sample_size": sample_size}

    def _losses(self, model: Any, sample: dict[str, Any], reduce: bool) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The loss, and what is logged beside it; None where fairseq's own way is to be taken."""
        projection = None if self.report_accuracy else output_projection(model)
        twice = self.rdrop_alpha > 0 and model.training
        if projection is None:
            if twice or self.graphs.limit:
                option = f"--rdrop-alpha {self.rdrop_alpha}" if twice else f"--cuda-graphs {self.graphs.limit}"
                raise ValueError(
                    f"{option} needs a plain output projection; leave out --report-accuracy, the adaptive softmax and "
                    f"fully sharded training, or this"
                )
            return None
        weight, bias = projection
        net_input = duplicate(sample["net_input"]) if twice else sample["net_input"]
        output = model(**net_input, features_only=True)
        target = model.get_targets(sample, output)[:, self.ignore_prefix_size :]  # (B, T)
        x = output[0][:, self.ignore_prefix_size :].flatten(0, 1)  # (B · T, C), or (2 · B · T, C)
        loss, nll = linear_cross_entropy(
            x,
            weight,
            torch.cat([target, target]).flatten() if twice else target.flatten(),
            bias,
            label_smoothing=self._smoothing(weight.size(0)),
            ignore_index=self.padding_idx,
            reduction="sum" if reduce else "none",
        )
        if not twice:
            return loss, {"nll_loss": nll}
        divergence = linear_symmetric_kl(x, weight, bias, target.flatten().eq(self.padding_idx))
        loss = loss + self.rdrop_alpha * divergence
        return loss, {"nll_loss": nll / 2, "rdrop_kl_loss": divergence.detach()}

    def _smoothing(self, size: int) -> float:
        """ε as fairseq counts it, over a vocabulary of that size."""
        return self.label_smoothing * (size - 1) / size if self.smoothing_over == "all" else self.label_smoothing

    def compute_loss(self, model: Any, net_output: Any, sample: Any, reduce: bool = True) -> tuple[Tensor, Tensor]:
        self.eps = self._smoothing(net_output[0].size(-1))
        return super().compute_loss(model, net_output, sample, reduce=reduce)

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        if not all(sum(log.get(size, 0) for log in logging_outputs) for size in ("ntokens", "sample_size")):
            _log_nothing()  # fairseq divides by both
            return
        super().reduce_metrics(logging_outputs)
        divergence = sum(log.get("rdrop_kl_loss", 0) for log in logging_outputs)
        if divergence:
            size = sum(log["sample_size"] for log in logging_outputs)
            metrics.log_scalar("rdrop_kl_loss", utils.item(divergence) / size, size, round=3)


def _log_nothing() -> None:
    """An update without a target has a loss of 0 and no weight in any average."""
    for name in ("loss", "nll_loss"):
        metrics.log_scalar(name, 0.0, 0, round=3)
    metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))


def output_projection(model: Any) -> tuple[Tensor, Tensor | None] | None:
    """Weight (V, C) and bias of a model's last layer, or None where the logits are more than one product."""
    decoder = getattr(model, "decoder", None)
    projection = getattr(decoder, "output_projection", None)
    adaptive = getattr(decoder, "adaptive_softmax", None) is not None
    if type(projection) is not nn.Linear or adaptive or isinstance(model, FullyShardedDataParallel):
        return None
    return projection.weight, projection.bias


if NAME not in CRITERION_REGISTRY:  # the plugin may be imported under two names
    register_criterion(NAME, dataclass=MacaronLabelSmoothedCrossEntropyConfig)(LabelSmoothedCrossEntropyCriterion)
