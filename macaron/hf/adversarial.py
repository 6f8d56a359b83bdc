"""transformers' Trainer under an adversary on the embeddings, for Macaron BERT and any other encoder.

    attack = Attack.of("yopo-3-3", step_size=0.1, norm="l2", radius=0.3)
    trainer = AdversarialTrainer(model, arguments, attack=attack, train_dataset=…)

or with a Trainer of one's own: `class MyTrainer(AdversarialTrainer, TrainerOfMine)`.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.modeling_layers import GradientCheckpointingLayer

from macaron.adversary import Attack, Split, added, perturb, start, train
from macaron.dynamics.depth import Depth
from macaron.dynamics.multistep import LinearMultistep
from macaron.hf.packing import sentence_numbers

__all__ = ["SPECIAL", "AdversarialTrainer", "attacked", "first_layer"]

# Shapes: B rows, T tokens, C channels of the embedding table.

SPECIAL = ("move", "stay")


class AdversarialTrainer(Trainer):
    """transformers' Trainer, on embeddings E[token] + δ that an adversary moves.

        max over δ, ‖δ‖ ≤ radius, of L(E + δ)      its gradient by the parameters is the mean over the passes that train

    `macaron.adversary` holds the methods and their counts. δ is added to what `get_input_embeddings()` returns, before
    positions, segments, norm and dropout; norm and radius are per sentence, also where several are packed in a row.
    For the YOPO methods the first part reaches to the output of the first layer, see `first_layer`. All passes of a
    batch see the same dropout masks, and every trained pass counts 1 / (number of them), so that learning rate,
    clipping and the reported loss mean what they mean without an adversary.

    Every pass is Trainer's own step up to its backward, so that its scaling for accumulated batches and for
    `num_items_in_batch`, autocast, the loss scaler and `compute_loss` of a subclass stay what they are. Gradients are
    reduced over processes once a batch.

    Args:
        args, kwargs: Trainer's own.
        attack: the adversary. "freeat", which trains on one batch in several updates, is not for a Trainer.
        adversary_start_update: updates before it begins; until then everything is Trainer's, to the bit.
        adversary_special: "move", as published, or "stay": whether [CLS], [SEP] and the like may move. Padding never.

    Raises:
        ValueError: an attack or model that does not go together with this; found before the first step where possible.
    """

    def __init__(
        self,
        *args: Any,
        attack: Attack,
        adversary_start_update: int = 0,
        adversary_special: str = "move",
        **kwargs: Any,
    ) -> None:
        _check_attack(attack)
        if attack.method == "freeat":
            raise ValueError(
                "attack: freeat trains on a batch in several updates one after another, and Trainer takes a new batch "
                "for each; choose freelb-hf"
            )
        if not isinstance(adversary_start_update, int) or adversary_start_update < 0:
            raise ValueError(
                f"adversary_start_update={adversary_start_update!r} must be at least 0, a whole number of updates; 0 "
                f"begins at once"
            )
        if adversary_special not in SPECIAL:
            raise ValueError(f"adversary_special={adversary_special!r} is unknown; choose one of {', '.join(SPECIAL)}")
        super().__init__(*args, **kwargs)
        self.attack = attack
        self.adversary_start_update = adversary_start_update
        self.adversary_special = adversary_special
        if attack.moves:
            self._check_adversary()

    def _check_adversary(self) -> None:
        problem = f"attack: {self.attack.method} needs "
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{problem}one GPU for each process; start them by torchrun, or set CUDA_VISIBLE_DEVICES to one"
            )
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError(f"{problem}whole parameters in every process; leave out DeepSpeed or FSDP")
        if self.args.torch_compile:
            raise ValueError(f"{problem}hooks inside of the model, which a compiled graph leaves out; no torch_compile")
        if self.attack.rule.inner:
            first_layer(_unwrapped(self.model))

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The gradients of one batch; its loss, the mean over the passes that train.

        Raises:
            ValueError: no `input_ids`, or a model that looks up others.
        """
        plain: Callable[..., Tensor] = functools.partial(super().training_step)
        if not self.attack.moves or self.state.global_step < self.adversary_start_update:
            return plain(model, inputs, *args, **kwargs)
        bare = _unwrapped(model)
        inputs = self._prepare_inputs(inputs)
        tokens = _tokens(inputs)
        embedding = bare.get_input_embeddings()
        padding = _padding(bare, inputs, tokens)
        options: dict[str, Any] = {}

        def loss(called: nn.Module, delta: Tensor) -> Tensor:
            with _held(self.accelerator) as held, added(embedding, tokens, delta, real=~padding):
                plain(called, copy.copy(inputs), *args, **kwargs)
            ((one, given),) = held
            options.update(given)
            return one

        outcome = train(
            self._split(model, bare, loss),
            _zeros(embedding, tokens),
            self.attack,
            padding=padding,
            movable=self._movable(tokens, padding),
            sentences=_sentences(inputs, tokens),
            scale=self.attack.mean,
            backward=lambda one: self.accelerator.backward(one, **options),
            magnify=1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale(),
            no_sync=lambda: self.accelerator.no_sync(model),
            # re-entrant checkpointing, which one may choose, knows no gradient of an input alone
            frozen=bare.parameters() if _recomputes(bare) else (),
        )
        return outcome.loss

    def _split(self, model: nn.Module, bare: Any, loss: Callable[[nn.Module, Tensor], Tensor]) -> Split:
        rule = self.attack.rule
        whole = functools.partial(loss, model)
        if not rule.inner:
            return Split(lambda x: x, lambda x, watch: whole(x))
        entire = not rule.hamiltonian and all(rule.full(s) for s in range(self.attack.passes))
        if not entire and getattr(model, "find_unused_parameters", False):
            raise ValueError(
                f"attack: {self.attack.method} runs the model backward in two parts, and DistributedDataParallel "
                f"takes the first for unused; set ddp_find_unused_parameters=False, or choose yopo-full or yopo-fairseq"
            )
        return Split.at(first_layer(bare), whole, functools.partial(loss, bare), entire=entire)

    def _movable(self, tokens: Tensor, padding: Tensor) -> Tensor | None:
        if self.adversary_special == "move":
            return None
        tokenizer, config = self.processing_class, _unwrapped(self.model).config
        holder: Any = tokenizer if hasattr(tokenizer, "cls_token_id") else config
        names = ("cls", "sep", "bos", "eos")
        found = {getattr(holder, f"{name}_token_id", None) for name in names} - {None}
        if not found:
            raise ValueError(
                "adversary_special='stay', but neither a tokenizer nor the configuration says which tokens are "
                "special; give processing_class=tokenizer"
            )
        special = torch.isin(tokens, torch.tensor(sorted(found), device=tokens.device))
        return ~(special | padding)


@contextmanager
def attacked(
    model: nn.Module,
    inputs: dict[str, Any],
    loss: Callable[[], Tensor],
    attack: Attack,
    *,
    movable: Tensor | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """A batch under attack, for an evaluation: within the context the model reads E[token] + δ.

        with attacked(model, inputs, lambda: model(**inputs, labels=labels).loss, attack):
            logits = model(**inputs).logits

    K ascents of PGD move δ against the loss, per sentence and within its own ball; any model of transformers works
    whose `get_input_embeddings()` is a table. The random start of a sentence is drawn from `seed` and its tokens, so
    that it does not depend on the batch it stands in. No gradient is left anywhere.

    Args:
        model: in evaluation mode.
        inputs: what it is called with; `input_ids` (B, T) among it.
        loss: () ↦ () the loss of the batch, for which it calls the model with `inputs`. A sum over sentences, or a mean
            of them, is the same to an attack that measures each gradient by its own length.
        attack: of method "pgd".
        movable: (B, T) True where it may move; everywhere but at padding otherwise.
        seed: of the random start.

    Yields:
        (B, T, C) δ.

    Raises:
        ValueError: another method, a model in training mode, no `input_ids`, or a model that looks up others.
    """
    _check_attack(attack)
    if model.training:
        raise ValueError(
            "attacked: the model is in training mode, where dropout hides what an attack does; call model.eval() first"
        )
    bare = _unwrapped(model)
    tokens, embedding = _tokens(inputs), bare.get_input_embeddings()
    padding, sentences = _padding(bare, inputs, tokens), _sentences(inputs, tokens)
    clean, real = _zeros(embedding, tokens), ~padding
    masks: dict[str, Any] = {"padding": padding, "movable": movable, "sentences": sentences}

    def moved(delta: Tensor) -> Tensor:
        with added(embedding, tokens, delta, real=real):
            return loss()

    split = Split(lambda x: x, lambda x, watch: moved(x))
    draw = _draw_of_each(tokens, real, sentences, clean, seed) if attack.init else None
    first = start(clean, attack, draw=draw, **masks)
    delta = perturb(split, clean, attack, start=first, frozen=bare.parameters(), **masks)
    with added(embedding, tokens, delta, real=real):
        yield delta


def _draw_of_each(tokens: Tensor, real: Tensor, sentences: Tensor | None, like: Tensor, seed: int) -> Tensor:
    """U(−1, 1) in the shape of `like`, (B, T, C); of each sentence by a generator of its own."""
    rows = torch.arange(tokens.size(0), device=tokens.device)[:, None].expand_as(tokens)
    item = rows if sentences is None else sentences
    draw = torch.zeros_like(like)
    for number in item[real].unique().tolist():
        own = real & (item == number)
        words = ",".join(map(str, [seed, *tokens[own].tolist()]))
        generator = torch.Generator().manual_seed(int(hashlib.sha256(words.encode()).hexdigest()[:12], 16))
        drawn = torch.empty(int(own.sum()), like.size(-1)).uniform_(-1.0, 1.0, generator=generator)
        draw[own] = drawn.to(draw)
    return draw


def first_layer(model: Any) -> nn.Module:
    """What the YOPO methods split an encoder behind: the first step of a `Depth`, or the first of its layers.

    The layers are the first list of `config.num_hidden_layers` modules. Embeddings alone are no first part: the frozen
    co-state would then give every inner ascent the same gradient, and n of them were one longer step.

    Raises:
        ValueError: no such list, a model of two halves, or layers whose output is not all that the rest follows from.
    """
    config, kind = model.config, type(model).__name__
    remedy = "choose freelb-hf, freelb-fairseq or pgd"
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{kind} is an encoder with a decoder, which the YOPO methods cannot split here; {remedy}")
    depth = getattr(config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, Depth):
            if isinstance(module.rule, LinearMultistep):
                raise ValueError(
                    f"{kind} cannot be split behind its first layer: depth_rule='multistep' passes two states on; "
                    f"{remedy}"
                )
            if len(module) != depth:
                raise ValueError(
                    f"{kind} cannot be split behind its first layer: it has {len(module)} for {depth} steps, as under "
                    f"horizon='fixed'; {remedy}"
                )
            return module
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            layer = module[0]
            # older versions of transformers run hooks of a layer inside of what they compute again
            if getattr(layer, "gradient_checkpointing", False) and "__call__" in vars(GradientCheckpointingLayer):
                raise ValueError(
                    f"{kind} cannot be split behind its first layer under gradient checkpointing in this version of "
                    f"transformers; update it, leave checkpointing out, or {remedy}"
                )
            return layer
    raise ValueError(
        f"{kind} cannot be split: it has no list of {depth} layers (num_hidden_layers), as where all are one shared "
        f"layer; {remedy}"
    )


def _check_attack(attack: Any) -> None:
    if not isinstance(attack, Attack):
        raise ValueError(
            f"attack={attack!r} is no attack; give one, such as Attack.of('yopo-3-3', step_size=0.1, norm='l2')"
        )
    if attack.bounds is not None:
        raise ValueError(
            f"attack: bounds={attack.bounds} are of pixels, and would clip δ itself here, where embeddings are moved; "
            f"leave them out"
        )


def _tokens(inputs: Any) -> Tensor:
    """(B, T) of a batch."""
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Tensor) or tokens.dim() != 2:
        raise ValueError(
            f"the adversary moves embeddings of tokens, (rows, tokens), but the batch has "
            f"{', '.join(sorted(inputs))}; give it input_ids of that form"
        )
    return tokens


def _recomputes(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _unwrapped(model: Any) -> Any:
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


@contextmanager
def _held(accelerator: Any) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """What Trainer would send backward, with its options, in place of doing so."""
    held: list[tuple[Tensor, dict[str, Any]]] = []
    accelerator.backward = lambda loss, **options: held.append((loss, options))
    try:
        yield held
    finally:
        del accelerator.backward


def _zeros(embedding: nn.Module, tokens: Tensor) -> Tensor:
    """δ = 0: (B, T, C)."""
    weight: Any = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"the adversary moves what an embedding table returns, and get_input_embeddings() is a "
            f"{type(embedding).__name__} without one"
        )
    return weight.new_zeros(*tokens.shape, weight.size(1))


def _sentences(inputs: Any, tokens: Tensor) -> Tensor | None:
    """(B, T) the sentence of each token; None for one in each row, as wherever there is a mask."""
    if inputs.get("attention_mask") is not None:
        return None
    return sentence_numbers(inputs.get("position_ids"), inputs.get("cu_seq_lens_q"), tokens.shape)


def _padding(model: Any, inputs: Any, tokens: Tensor) -> Tensor:
    """(B, T) bool: by the mask where it has that form, else by the padding token."""
    mask = inputs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.shape == tokens.shape:
        return ~mask.bool()
    pad = getattr(model.config, "pad_token_id", None)
    return torch.zeros_like(tokens, dtype=torch.bool) if pad is None else tokens.eq(pad)
