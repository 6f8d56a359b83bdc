"""Dev scores under attack: each sentence's embeddings are moved against its own label by PGD, then it is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from transformers import Trainer

from macaron.adversary import Attack
from macaron.hf.adversarial import attacked

from ..common.errors import RecipeError
from .data import TaskSplit, load
from .metrics import score
from .results import attacked_logits
from .settings import FineTuningOptions
from .tasks import evaluated_with


class AttackedPrediction(Trainer):
    """Trainer whose predictions may be made under attack, against `compute_loss_func.each(logits, labels)`.

    δ of a sentence depends on its tokens, its label, the weights and Trainer's seed, not on the others of its batch.
    """

    attacked_by: Attack | None = None

    @contextmanager
    def under(self, attack: Attack) -> Iterator[None]:
        """Predict under this attack, for as long as the context lasts."""
        self.attacked_by = attack
        try:
            yield
        finally:
            self.attacked_by = None

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if self.attacked_by is None:
            return super().prediction_step(model, inputs, *args, **kwargs)
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")

        def loss() -> Tensor:
            with self.compute_loss_context_manager():
                outputs = model(**inputs)
            return self.compute_loss_func.each(logits_of(outputs), labels).sum()

        with attacked(model, inputs, loss, self.attacked_by, seed=self.args.seed):
            return super().prediction_step(model, inputs, *args, **kwargs)


def check_attack(model: Any, inputs: dict[str, Tensor], loss: Any, attack: Attack) -> None:
    """Raise RecipeError where this model cannot be attacked, which would otherwise be seen after its training.

    Args:
        model: in training mode, as after.
        inputs: of a sentence or more, with labels.
        loss: a `TaskLoss`.
    """
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    model.eval()
    try:
        with attacked(model, inputs, lambda: loss.each(logits_of(model(**inputs)), labels).sum(), attack):
            model(**inputs)
    except ValueError as error:
        raise RecipeError(f"--attack: {error}") from error
    finally:
        model.train()


def logits_of(outputs: Any) -> Tensor:
    return (outputs["logits"] if isinstance(outputs, dict) else outputs[0]).float()


def attacked_scores(
    predict: Callable[[TaskSplit], np.ndarray], trained: str, options: FineTuningOptions
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """(outputs, scores) of the dev sets of all tasks that the model answers, by a `predict` that is under attack."""
    arrays, scores = {}, {}
    for task in evaluated_with(trained):
        dev = load(task.name, options.data_dir, options.dataset).dev
        if dev is not None and dev.labels is not None and len(dev):
            arrays[attacked_logits(task.name)] = logits = predict(dev)
            scores[task.name] = score(task, logits, dev.labels)[0]
    return arrays, scores
