"""Any criterion under an adversary on the embeddings: `--criterion macaron_adversarial --inner NAME --adversary …`."""

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, Optional, get_args, get_origin

import torch
from fairseq import utils
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY, FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import FullyShardedDataParallel
from omegaconf import OmegaConf
from torch import Tensor, nn

from macaron.adversary import METHODS, NORMS, Attack, Split, Watch, added, train
from macaron.dynamics.depth import Depth
from macaron.dynamics.draws import SameDraws
from macaron.dynamics.multistep import LinearMultistep

from ..config import choices
from . import label_smoothed_cross_entropy  # noqa: F401  is registered first, so that its options are among these

# Shapes: B sentences, T tokens of a side, C channels of the embeddings.

NAME = "macaron_adversarial"
SIDES = ("source", "target", "both")
SPECIAL = ("move", "stay")

_COMMON = ("${optimization.", "${distributed_training.", "${common.")  # what every configuration of fairseq has


@dataclass
class _Own(FairseqDataclass):
    inner: Optional[str] = field(
        default=None,
        metadata={
            "help": "criterion that is trained under the adversary, by its name; its own options stand beside these"
        },
    )
    adversary: str = field(
        default="natural",
        metadata={
            "help": f"how the adversary and the model take turns: {', '.join(METHODS)}; with its counts in short "
            "METHOD-K or METHOD-K-n, as yopo-3-3. natural: none"
        },
    )
    adversary_steps: Optional[int] = field(default=None, metadata={"help": "K of the method (default: 1)"})
    adversary_inner_steps: Optional[int] = field(
        default=None, metadata={"help": "n of the YOPO methods: ascents on the first layer for each pass (default: 1)"}
    )
    adversary_step_size: float = field(
        default=0.0, metadata={"help": "length of an ascent, in units of the embeddings as they are stored"}
    )
    adversary_norm: Optional[choices("AdversaryNormChoice", NORMS)] = field(  # type: ignore[valid-type]
        default=None, metadata={"help": "norm of steps and radius, over all positions of a sentence"}
    )
    adversary_radius: Optional[float] = field(
        default=None, metadata={"help": "of the ball that the adversary stays in (default: none)"}
    )
    adversary_init: float = field(
        default=0.0,
        metadata={"help": "magnitude of the random start: U(-1, 1) times it, under l2 divided by √(tokens · channels)"},
    )
    adversary_on: choices("AdversaryOnChoice", SIDES) = field(  # type: ignore[valid-type]
        default="source", metadata={"help": "whose embeddings move; both share one norm. A language model has one side"}
    )
    adversary_special: choices("AdversarySpecialChoice", SPECIAL) = field(  # type: ignore[valid-type]
        default="move", metadata={"help": "whether the adversary may move <s> and </s>, too; padding never moves"}
    )
    adv_start_update: int = field(
        default=0, metadata={"help": "updates before the adversary begins; they are the inner criterion's to the bit"}
    )


_OWN = tuple(f.name for f in fields(_Own))


def _options_of_all() -> dict[str, tuple[Any, Any]]:
    """The options of every criterion that fairseq and this plugin have, unset: name → (type, dataclasses.field)."""
    found: dict[str, tuple[Any, Any]] = {}
    users: dict[str, list[str]] = {}
    for name, config in CRITERION_DATACLASS_REGISTRY.items():
        for f in fields(config) if name != NAME else ():
            users.setdefault(f.name, []).append(name)
            kind = f.type if type(None) in get_args(f.type) else Optional[f.type]
            if f.name in _OWN or f.name in found or get_origin(f.type) is dict:
                continue
            if not _is_interpolated(f):
                found[f.name] = (kind, field(default=None, metadata=dict(f.metadata)))
            elif f.default.startswith(_COMMON):
                found[f.name] = (f.type, field(default=f.default, metadata=dict(f.metadata)))
    for name, (kind, option) in found.items():
        if not _is_interpolated(option):
            said = option.metadata.get("help") or name.replace("_", " ")
            metadata = {**option.metadata, "help": f"{said} (of --inner {', '.join(users[name])})"}
            found[name] = (kind, field(default=None, metadata=metadata))
    return found


def _is_interpolated(f: Any) -> bool:
    return isinstance(f.default, str) and f.default.startswith("${")


MacaronAdversarialConfig = make_dataclass(
    "MacaronAdversarialConfig",
    [(name, kind, option) for name, (kind, option) in _options_of_all().items()],
    bases=(_Own,),
)
MacaronAdversarialConfig.__module__ = __name__  # where pickle looks for it
MacaronAdversarialConfig.__doc__ = "Options of the adversary, and those of any criterion inside."


class AdversarialCriterion(FairseqCriterion):
    """A criterion of another name, trained on embeddings E[token] + δ that an adversary moves.

        max over δ, ‖δ‖ ≤ radius, of L(E + δ)      its gradient by the parameters is the mean over the passes that train

    `macaron.adversary` holds the methods and their counts. δ is added to what the embedding table returns, before
    fairseq's factor √C, positions, norm and dropout. For the YOPO methods the first part reaches to the output of
    the first layer (of a decoder: its memory held fixed). All passes of a batch see the same dropout masks and dropped
    layers, and every trained pass counts 1 / (number of them), so that learning rate and clipping mean what they mean
    without an adversary; the published learning rate divided by m of the images' YOPO is the same thing.

    Before `--adv-start-update`, in validation and under `natural` this is the inner criterion, to the bit. Sample size
    and log are the inner criterion's, averaged over the passes that train. The class takes the inner one's name, which
    checkpoints record, so that training goes on from a checkpoint with or without an adversary.

    A criterion is not told the optimiser, which alone knows how losses are scaled. So the task's `train_step` is
    wrapped, and all backward passes are made in here, by the optimiser's `backward`; what is returned has no gradient
    left to give.
    """

    inner_class: type[FairseqCriterion] = FairseqCriterion

    def __init__(
        self, task: Any, inner: FairseqCriterion, attack: Attack, on: str, special: str, start_update: int
    ) -> None:
        super().__init__(task)
        self.inner, self.attack = inner, attack
        self.on, self.special, self.start_update = on, special, start_update
        self._step: _Step | None = None

    @classmethod
    def build_criterion(cls, cfg: Any, task: Any) -> "AdversarialCriterion":
        """
        Raises:
            ValueError: no inner criterion, or one that cannot be inside; options that it has not; an attack that makes
                no sense.
        """
        attack = Attack.of(
            str(cfg.adversary),
            steps=cfg.adversary_steps,
            inner_steps=cfg.adversary_inner_steps,
            step_size=cfg.adversary_step_size,
            norm=None if cfg.adversary_norm is None else str(cfg.adversary_norm),
            radius=cfg.adversary_radius,
            init=cfg.adversary_init,
        )
        if attack.method == "freeat":
            raise ValueError(
                "--adversary freeat trains on a batch in several updates one after another, and fairseq's trainer "
                "takes a new batch for each; choose freelb-fairseq"
            )
        if cfg.adv_start_update < 0:
            raise ValueError(f"--adv-start-update {cfg.adv_start_update} must not be negative; 0 begins at once")
        for name, known in (("on", SIDES), ("special", SPECIAL)):
            value = str(getattr(cfg, f"adversary_{name}"))
            if value not in known:
                raise ValueError(f"--adversary-{name} {value} is unknown; choose one of {', '.join(known)}")
        inner = _build_inner(cfg, task)
        # fairseq reads names and class methods of the class
        named = type(type(inner).__name__, (cls,), {"inner_class": type(inner), "__module__": __name__})
        made = named(task, inner, attack, str(cfg.adversary_on), str(cfg.adversary_special), cfg.adv_start_update)
        made._listen(task)
        return made

    @classmethod
    def reduce_metrics(cls, logging_outputs: Sequence[dict[str, Any]]) -> None:
        cls.inner_class.reduce_metrics(logging_outputs)

    @classmethod
    def logging_outputs_can_be_summed(cls) -> bool:
        return bool(cls.inner_class.logging_outputs_can_be_summed())

    def _listen(self, task: Any) -> None:
        """Have the task say which optimiser a step is for, and at which update."""
        plain = getattr(task, "train_step", None)
        if plain is None:
            return
        signature = inspect.signature(plain)

        @functools.wraps(plain)
        def train_step(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments
            self._step = _Step(given["model"], given["optimizer"], given["update_num"], given.get("ignore_grad", False))
            try:
                return plain(*args, **kwargs)
            finally:
                self._step = None

        task.train_step = train_step

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, Any, dict[str, Any]]:
        """As the inner criterion's; in training the gradients are there already.

        Raises:
            ValueError: a model without such embeddings or such a first layer, fully sharded parameters, or a training
                loop that is not a task's `train_step`.
        """
        if not (self.attack.moves and model.training and torch.is_grad_enabled()):
            return self.inner(model, sample, reduce=reduce)
        step = self._step
        if step is None:
            raise ValueError(
                f"{NAME} was called outside of the task's train_step, so that nothing says how losses are scaled; "
                f"call task.train_step(sample, model, criterion, optimizer, update_num), or take the criterion's "
                f".inner"
            )
        if step.update < self.start_update:
            return self.inner(model, sample, reduce=reduce)
        batch = _Batch(self, model, sample, reduce)
        outcome = train(
            batch.split(),
            batch.clean,
            self.attack,
            padding=batch.padding,
            movable=batch.movable,
            scale=0.0 if step.ignored else self.attack.mean,
            backward=step.optimizer.backward,
            magnify=_loss_scale(step.optimizer),
            no_sync=_no_sync(step.model),
            frozen=_recomputed(model),
        )
        # fairseq multiplies this in place, and asks for its gradient: that of nothing
        loss = outcome.loss + torch.zeros_like(outcome.loss, requires_grad=True)
        trained = batch.results[-1:] if self.attack.rule.trains_last_only else batch.results
        return loss, trained[-1][0], _mean_log([log for _, log in trained])


@dataclass(frozen=True)
class _Step:
    model: Any
    optimizer: Any
    update: int
    ignored: bool  # a batch that only keeps this process in step with the others


def _build_inner(cfg: Any, task: Any) -> FairseqCriterion:
    """The inner criterion, from those options that are its own."""
    name = cfg.inner
    wrappable = sorted(set(CRITERION_DATACLASS_REGISTRY) - {NAME})
    if name is None:
        raise ValueError(f"--criterion {NAME} trains another criterion; say which: --inner {' | '.join(wrappable)}")
    if name == NAME:
        raise ValueError(f"--inner {name} is this criterion itself; name the one that computes the loss")
    if name not in CRITERION_REGISTRY:
        raise ValueError(f"--inner {name} is unknown; choose one of {', '.join(wrappable)}")
    if name not in CRITERION_DATACLASS_REGISTRY:
        raise ValueError(
            f"--inner {name} declares its options in fairseq's old way, which cannot be read from here; choose one of "
            f"{', '.join(wrappable)}"
        )
    config = CRITERION_DATACLASS_REGISTRY[name]()
    own = {f.name: f for f in fields(config)}
    for f in fields(MacaronAdversarialConfig):
        value = getattr(cfg, f.name, None)
        if f.name in _OWN or _is_interpolated(f) or value is None or f.name in own:
            continue
        if not (value is False or (isinstance(value, list) and not value)):
            raise ValueError(f"--{f.name.replace('_', '-')} is no option of --inner {name}; leave it out")
    for f in own.values():
        value = getattr(cfg, f.name, None)
        if f.name == "_name":
            continue
        if value is not None:
            setattr(config, f.name, OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
        elif _is_interpolated(f) or (f.default is MISSING and f.default_factory is MISSING):
            raise ValueError(f"--inner {name} takes {f.name} from its task, which cannot be read from here")
    inner = CRITERION_REGISTRY[name].build_criterion(config, task)
    if getattr(config, "cuda_graphs", 0):
        raise ValueError(
            f"--cuda-graphs {config.cuda_graphs} replays a pass, which an adversary has to change; leave it out under "
            f"--criterion {NAME}"
        )
    if utils.has_parameters(inner):
        raise ValueError(
            f"--inner {name} has parameters of its own, whose gradients fairseq would reduce once for every pass; "
            f"choose a criterion without"
        )
    return inner


# --- one batch ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """A sequence of tokens and what takes it in."""

    name: str
    part: nn.Module  # encoder or decoder, called once a pass
    tokens: Tensor  # (B, T)

    @property
    def embedding(self) -> nn.Module:
        return self.part.embed_tokens  # type: ignore[return-value]

    @property
    def padding(self) -> Tensor:
        return self.tokens.eq(self.part.dictionary.pad())  # type: ignore[union-attr, operator, no-any-return]

    @property
    def special(self) -> Tensor:
        """<s> and </s>; (B, T) bool."""
        dictionary: Any = self.part.dictionary
        return self.tokens.eq(dictionary.bos()) | self.tokens.eq(dictionary.eos())

    @property
    def first(self) -> nn.Module:
        """What `Split.at` cuts behind: the first step of the depth, or the first layer.

        Raises:
            ValueError: its output is no state that all the rest follows from.
        """
        layers: Any = getattr(self.part, "layers", None)
        problem = f"the YOPO methods cannot split the {self.name} side of this model behind its first layer: "
        remedy = "; choose freelb-fairseq, freelb-hf or pgd"
        if not isinstance(layers, nn.ModuleList) or not len(layers):
            raise ValueError(f"{problem}{type(self.part).__name__} has no list of layers{remedy}")
        if getattr(layers, "layerdrop", 0.0) > 0.0 or getattr(layers, "p", 0.0) > 0.0:  # ours and fairseq's
            raise ValueError(f"{problem}--{self._flag}-layerdrop leaves it out at times{remedy}")
        if isinstance(layers, Depth) and isinstance(layers.rule, LinearMultistep):
            raise ValueError(f"{problem}--depth-rule multistep passes two states on{remedy}")
        return layers if isinstance(layers, Depth) else layers[0]

    @property
    def _flag(self) -> str:
        return "encoder" if self.name == "source" else "decoder"


class _Batch:
    """A model, a batch, and δ on the way in. With two sides δ is (B, T_source + T_target, C)."""

    def __init__(self, criterion: AdversarialCriterion, model: Any, sample: dict[str, Any], reduce: bool) -> None:
        self.criterion, self.model, self.sample, self.reduce = criterion, model, sample, reduce
        self.bare = _unwrapped(model)
        self.sides = _sides(self.bare, criterion.on, sample)
        self.padding = torch.cat([side.padding for side in self.sides], 1)
        self.movable: Tensor | None = None
        if criterion.special == "stay":
            self.movable = ~(self.padding | torch.cat([side.special for side in self.sides], 1))
        sizes = {side.name: int(side.embedding.embedding_dim) for side in self.sides}  # type: ignore[arg-type]
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"--adversary-on both measures one norm over both sides, but their embeddings have {sizes} channels; "
                f"choose source or target"
            )
        weight = next(p for p in self.sides[0].embedding.parameters() if p.is_floating_point())
        self.clean = weight.new_zeros(*self.padding.shape, next(iter(sizes.values())))
        self.results: list[tuple[Any, dict[str, Any]]] = []  # sample size and log of every full pass
        self._inside: nn.Module | None = None  # the side that is being run
        # the decoder's call in the last full pass, with a fixed memory, and where its random numbers begin
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._draws = SameDraws(self.clean.device)

    def split(self) -> Split:
        """The model cut behind its first layer, or uncut where the method has no inner steps."""
        rule = self.criterion.attack.rule
        if not rule.inner:
            return Split(lambda x: x, lambda x, watch: self.loss(self.model, x))
        entire = not rule.hamiltonian and all(rule.full(s) for s in range(self.criterion.attack.passes))
        source, target = self.sides[0], self.sides[-1]
        remembers = target.name == "target" and getattr(self.bare, "encoder", None) is not None
        if remembers and not entire:
            raise ValueError(
                f"--adversary {self.criterion.attack.method} gives the first layer a gradient of its own, but the "
                f"decoder's first layer also takes the encoder's output; on the target choose yopo-full or yopo-fairseq"
            )
        if not entire and _finds_unused(self.model):
            raise ValueError(
                f"--adversary {self.criterion.attack.method} runs the model backward in two parts, and "
                f"--find-unused-parameters takes the first for unused; leave that out, or choose yopo-full or "
                f"yopo-fairseq"
            )
        whole = functools.partial(self.loss, self.model)
        if not remembers:
            first = functools.partial(self.loss, self.bare)
            return Split.at(source.first, whole, first, entire=entire)
        behind = Split.at(target.first, whole, self.decode_again, entire=True)
        if len(self.sides) == 1:
            return behind
        before = Split.at(source.first, functools.partial(self.loss, self.bare))

        def both(x: Tensor, watch: Watch) -> Tensor:
            return Split.at(source.first, lambda x: behind.whole(x, watch)).whole(x, watch)

        def alone(x: Tensor) -> tuple[Tensor, ...]:
            return before.first(x), behind.first(x)  # type: ignore[return-value]

        return Split(alone, both, entire=True)

    def loss(self, model: Any, delta: Tensor) -> Tensor:
        """One pass of the inner criterion at E + δ."""
        self._inside = None
        with ExitStack() as stack:
            self._add(stack, delta, self.sides)
            for part in _parts(self.bare):
                handle = part.register_forward_pre_hook(self._enter, with_kwargs=True)
                stack.callback(handle.remove)
            loss, size, log = self.criterion.inner(model, self.sample, reduce=self.reduce)
        self.results.append((size, log))
        return loss

    def decode_again(self, delta: Tensor) -> None:
        """The decoder alone as in the last full pass, at another δ; it is left after its first layer."""
        args, kwargs = self._call
        target = self.sides[-1]
        with ExitStack() as stack:
            self._inside = target.part
            self._add(stack, delta, [target])
            stack.enter_context(self._draws)
            target.part(*args, **kwargs)

    def _add(self, stack: ExitStack, delta: Tensor, sides: Sequence[_Side]) -> None:
        end = delta.size(1)
        for side in reversed(self.sides):
            begin = end - side.tokens.size(1)
            if side in sides:
                inside = functools.partial(self._is_inside, side.part)
                own = delta[:, begin:end]
                stack.enter_context(added(side.embedding, side.tokens, own, when=inside))
            end = begin

    def _is_inside(self, part: nn.Module) -> bool:
        return self._inside is part

    def _enter(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside = part
        if part is self.sides[-1].part and self.criterion.attack.rule.inner:
            self._call = _fixed(args), _fixed(kwargs)
            self._draws = SameDraws(self.clean.device)
            with self._draws:
                pass


def _parts(model: Any) -> list[nn.Module]:
    """The encoder and the decoder, as far as there are."""
    parts = [getattr(model, name, None) for name in ("encoder", "decoder")]
    return [getattr(part, "sentence_encoder", part) for part in parts if isinstance(part, nn.Module)]


def _fixed(value: Any) -> Any:
    """The same arguments, detached from the graph."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _fixed(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        made = [_fixed(each) for each in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


def _sides(model: Any, on: str, sample: dict[str, Any]) -> list[_Side]:
    """What the adversary moves.

    Raises:
        ValueError: the model has no such side, or no embeddings of tokens there.
    """
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    encoder = getattr(encoder, "sentence_encoder", encoder)
    kind = type(model).__name__
    if encoder is None and decoder is None:
        raise ValueError(f"{NAME}: {kind} has neither an encoder nor a decoder to put an adversary before")
    found = []
    if encoder is None or decoder is None:  # one sequence, and one name for it
        if on == "both" or (on == "target" and decoder is None):
            raise ValueError(f"--adversary-on {on}: {kind} takes in one sequence; leave the option out")
        found.append(("source", encoder if decoder is None else decoder, "src_tokens"))
    else:
        found += [("source", encoder, "src_tokens")] if on in ("source", "both") else []
        found += [("target", decoder, "prev_output_tokens")] if on in ("target", "both") else []
    sides = []
    for name, part, key in found:
        tokens = sample["net_input"].get(key)
        embedding = getattr(part, "embed_tokens", None)
        if not isinstance(tokens, Tensor) or not isinstance(getattr(embedding, "embedding_dim", None), int):
            raise ValueError(
                f"{NAME}: the {name} side of {kind} has no embed_tokens that takes {key}; the adversary moves "
                f"embeddings of tokens"
            )
        sides.append(_Side(name, part, tokens))
    return sides


# --- the machinery around a model ---------------------------------------------------------------------------------


def _unwrapped(model: Any) -> Any:
    """Without what fairseq wraps around it for several processes."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(
            f"{NAME} does not work with --ddp-backend fully_sharded, which gathers parameters for whole passes only; "
            f"choose pytorch_ddp or legacy_ddp"
        )
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def _finds_unused(model: Any) -> bool:
    wrapped = [model, getattr(model, "module", None)]
    return any(
        isinstance(each, nn.parallel.DistributedDataParallel) and each.find_unused_parameters for each in wrapped
    )


def _no_sync(model: Any) -> Callable[[], AbstractContextManager[Any]]:
    return getattr(model, "no_sync", None) or nullcontext


def _recomputed(model: nn.Module) -> list[nn.Parameter]:
    """All parameters where activations are computed again, by fairseq's way that knows no gradient of an input."""
    if any(hasattr(module, "precheckpoint_forward") for module in model.modules()):
        return list(model.parameters())
    return []


def _loss_scale(optimizer: Any) -> float:
    """The factor of --fp16 or --amp."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is not None:
        return float(scaler.loss_scale)
    scaler = getattr(optimizer, "_grad_scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def _mean_log(logs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each number over the passes; what is the same in all of them, as counts are, stays as it is."""
    mean = dict(logs[-1])
    for name, last in logs[-1].items():
        values = [log[name] for log in logs]
        if isinstance(last, (int, float)) and any(value != last for value in values):
            mean[name] = sum(values) / len(values)
        elif isinstance(last, Tensor) and last.numel() == 1 and last.is_floating_point():
            mean[name] = torch.stack([value.detach() for value in values]).mean(0)
    return mean


if NAME not in CRITERION_REGISTRY:  # the plugin may be imported under two names
    register_criterion(NAME, dataclass=MacaronAdversarialConfig)(AdversarialCriterion)
