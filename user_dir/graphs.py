"""Forward and backward of a batch as CUDA graphs: two launches instead of some thousands.

A training step of a few thousand tokens launches kernels that are shorter than their launch, so that the GPU waits for
the host. A CUDA graph is a recording of launches, with all addresses, for one shape of batch; so it pays where shapes
come back, which `--num-batch-buckets` provides for.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import TorchFunctionMode

from macaron.ops._backend import free_launches, on_accelerator

from .graph_checks import AnotherStep, Step, refuse_another, refuse_what_cannot_be_recorded

logger = logging.getLogger(__name__)

Logged = dict[str, Tensor]
Body = Callable[[dict[str, Any]], tuple[Tensor, Logged]]  # sample ↦ loss (), and what is logged


@dataclass
class Recording:
    """One shape's graphs, and the tensors that they read and write.

    Args:
        inputs: what the forward reads.
        loss, logged: what it leaves.
        factor: (), the gradient of what follows with respect to the loss, which the backward reads.
        forward, backward: replay them.
        used: numbers of the parameters whose gradients the backward leaves.
    """

    inputs: dict[str, Tensor]
    loss: Tensor
    logged: Logged
    factor: Tensor
    forward: Callable[[], None]
    backward: Callable[[], None]
    used: list[int]


class _TakePadding(TorchFunctionMode):
    """Answers "yes" where fairseq asks whether a batch has any padding: the host cannot wait for the GPU while it
    records, and a mask that hides nothing changes nothing. Other questions are not answered so, and end a recording."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__bool__ and any(args[0] is t for t in self.asked):
            return True
        found = func(*args, **(kwargs or {}))
        if func in (Tensor.any, torch.any) and on_accelerator(found):
            self.asked.append(found)
        return found


@contextlib.contextmanager
def _recordable() -> Iterator[None]:
    """Within, a step does what it does where it is recorded."""
    with free_launches(), _TakePadding():
        yield


def record(
    body: Callable[[dict[str, Tensor]], tuple[Tensor, Logged]],
    inputs: dict[str, Tensor],
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    pool: Any,
) -> Recording:
    """Graphs of `body` and of its backward, which leaves the gradients of `params` in `grads`.

    Their memory is `pool`, which the recordings of one model share: no two of them run at a time.
    """
    inputs = {name: t.clone() for name, t in inputs.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with _recordable():
        try:
            with torch.cuda.stream(stream):  # what is made at first use, such as compiled kernels, cannot be recorded
                loss, _ = body(inputs)
                torch.autograd.grad(loss, params, allow_unused=True)
                del loss
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # the thread in which a data loader pins memory calls what would end a recording that other threads may disturb
        alone = {"pool": pool, "capture_error_mode": "thread_local"}
        with torch.cuda.graph(forward, **alone):
            loss, logged = body(inputs)
        factor = torch.ones_like(loss)
        with torch.cuda.graph(backward, **alone):
            found = torch.autograd.grad(loss, params, factor, allow_unused=True)
            used = [i for i, grad in enumerate(found) if grad is not None]
            torch._foreach_copy_([grads[i] for i in used], [found[i] for i in used])
    return Recording(inputs, loss.detach(), logged, factor, forward.replay, backward.replay, used)


class Graphs:
    """Recorded training steps of one model.

    Args:
        limit: shapes of batches that are recorded, each when it comes for the second time; others are run as ever.
        recorder: `record`, or what does as if.
    """

    def __init__(self, limit: int, recorder: Callable[..., Recording] = record) -> None:
        if limit < 0:
            raise ValueError(f"--cuda-graphs {limit} must not be negative; 0 records nothing")
        self.limit, self.recorder = limit, recorder
        self.serial = 0  # of the last replay
        self.proven = False  # whether a recording has ever been the step that was recorded
        self.said: set[str] = set()
        self.seen: Counter[Any] = Counter()
        self.known: dict[Any, Recording] = {}
        self.model: nn.Module | None = None
        self._begin(None)

    def _begin(self, model: nn.Module | None) -> None:
        if self.known or model is not self.model:
            self.seen.clear()
        if self.known and model is self.model:
            logger.warning(
                f"CUDA graphs: {len(self.known)} are dropped and made anew, since the model's tensors, what is trained "
                f"of it or its rates have changed; leave out --cuda-graphs where this is said often"
            )
        self.model, self.given = model, _Given(model)
        self.params = [p for _, p in _trained(model)]
        self.grads: list[Tensor] = []
        self.known.clear()
        self.pool: Any = None
        self.serial += 1  # what was replayed before has no backward any more

    def __call__(self, model: nn.Module, sample: dict[str, Any], body: Body) -> tuple[Tensor, Logged] | None:
        """Loss and log of `body(sample)`, or None where this batch has to be run as ever.

        Raises:
            ValueError: a model or a process whose step cannot be recorded, with the reason.
        """
        if not (self.limit and model.training and torch.is_grad_enabled()) or model._forward_hooks:
            return None
        if model is not self.model or not self.given.holds():
            refuse_what_cannot_be_recorded(model)
            self._begin(model)
        given = {**sample["net_input"], "target": sample["target"]}
        inputs = {name: t for name, t in given.items() if isinstance(t, Tensor)}
        odd = [name for name, value in given.items() if not (value is None or isinstance(value, _PLAIN))]
        if odd or "target" not in inputs:
            return self._as_ever(f"it holds {', '.join(odd) or 'no target'} beside tensors, numbers and words")
        if self.given.hooked():
            return self._as_ever("the model has hooks, which no replay calls")
        if self.recorder is record and not all(t.is_cuda for t in inputs.values()):
            raise ValueError(f"--cuda-graphs {self.limit} needs a GPU, and this batch is on a CPU; leave it out")
        rest = [(name, repr(value)) for name, value in given.items() if name not in inputs]
        key = (*((name, t.shape, t.dtype) for name, t in inputs.items()), *rest)
        if key not in self.known:
            self.seen[key] = times = self.seen[key] + 1
            if times < 2 or times & (times - 1):  # where it fails, less and less often: twice, 4, 8, 16 times …
                return None
            if len(self.known) >= self.limit:
                return self._as_ever(
                    f"its shape is another than the {self.limit} that are recorded; --num-batch-buckets makes fewer "
                    f"shapes, and a higher --cuda-graphs allows more"
                )
            recorded = self._record(sample, inputs, body)
            if recorded is None:
                return None
            self.known[key], self.proven = recorded, True
        recording = self.known[key]
        for name, t in inputs.items():
            recording.inputs[name].copy_(t, non_blocking=True)
        self.serial += 1
        recording.forward()
        anchor = torch.zeros((), device=recording.loss.device, requires_grad=True)
        loss: Tensor = _Replayed.apply(anchor, self, recording)
        return loss, {name: t.clone() for name, t in recording.logged.items()}

    def _as_ever(self, reason: str) -> None:
        """No replay, which is said once for each reason."""
        if reason not in self.said:
            self.said.add(reason)
            logger.info(f"CUDA graphs: a batch is run as ever, and others like it, since {reason}")

    def _record(self, sample: dict[str, Any], inputs: dict[str, Tensor], body: Body) -> Recording | None:
        # Parameters of their own on the same memory: those of the model belong to the graphs of autograd on the stream
        # of before, on which a backward that is recorded would have to wait.
        own = {id(p): p.detach().requires_grad_() for p in self.params}
        holder = _Holder(self.model, body)
        # A module that stands in two places, such as a shared embedding, is named once: of two names functional_call
        # would put back its replacement, and the model would be tied no more.
        named = {
            f"{prefix}.{name}": own[id(p)]
            for prefix, module in holder.named_modules()
            for name, p in module._parameters.items()
            if id(p) in own
        }

        def of(inputs: dict[str, Tensor]) -> tuple[Tensor, Logged]:
            net_input = {name: t for name, t in inputs.items() if name != "target"}
            # and no more of the batch: what else stands in it would be that of this batch in each replay
            filled = {"net_input": {**sample["net_input"], **net_input}, "target": inputs["target"]}
            found: tuple[Tensor, Logged] = functional_call(holder, named, (filled,), tie_weights=False)
            return found

        if self.pool is None and self.recorder is record:
            self.pool = torch.cuda.graph_pool_handle()
        devices = sorted({t.get_device() for t in inputs.values() if t.is_cuda})
        shapes = ", ".join(f"{name} {'×'.join(map(str, t.shape))}" for name, t in inputs.items())
        expected: Step | None = None
        try:
            for factor in _FACTORS:
                with self._without_a_trace(devices):
                    expected = self._expected(sample, body, factor)
                if not self.given.holds():
                    raise RuntimeError("its forward puts other tensors, modules or rates in place of the model's")
                if expected.finite():
                    break
            else:
                return self._as_ever("its loss or its gradients are not finite; it is tried anew later")
            self.grads = self.grads or [torch.zeros_like(p) for p in self.params]
            # of another batch, so that the comparison shows what would be that of the recorded batch in each replay
            other = {name: t.roll(1) for name, t in inputs.items()}
            with self._without_a_trace(devices):
                recording = self.recorder(of, other, list(own.values()), self.grads, self.pool)
            with self._without_a_trace(devices):
                self._compare(recording, inputs, expected, shapes)
        except AnotherStep as error:
            if not self.proven:
                raise
            return self._no_more(str(error))  # hours may have passed, and those that are known are right
        except Exception as error:
            if "out of memory" in str(error):  # fairseq's trainer would leave out this batch, and each of this shape
                return self._no_more(f"CUDA graphs: no memory for more than {len(self.known)}")
            if expected is None:  # the step itself fails, which has nothing to do with a recording
                raise
            cause = _first(error)
            reason = str(cause) if isinstance(cause, RuntimeError) else f"{type(cause).__name__}: {cause}"
            raise ValueError(
                f"--cuda-graphs {self.limit}: this step cannot be recorded ({reason}); leave it out"
            ) from error
        logger.info(f"CUDA graphs: {len(self.known) + 1} of at most {self.limit}, of batches with {shapes}")
        return recording

    def _no_more(self, reason: str) -> None:
        # What a recording that is thrown away gives back to the pool, cuBLAS's workspace for one, those that are known
        # still write to (pytorch/pytorch#193402): no later one may get it.
        self.limit = len(self.known)
        if not self.known:
            self.grads, self.pool = [], None
        logger.warning(f"{reason}. No more are recorded; batches of other shapes are run as ever")

    @contextlib.contextmanager
    def _without_a_trace(self, devices: Sequence[int]) -> Iterator[None]:
        """Random states and buffers, such as running means, are afterwards what they were before."""
        before = [] if self.model is None else [(b, b.clone()) for b in self.model.buffers()]
        with torch.random.fork_rng(devices):
            try:
                yield
            finally:
                with torch.no_grad():
                    for buffer, values in before:
                        buffer.copy_(values)

    def _expected(self, sample: dict[str, Any], body: Body, factor: float) -> Step:
        """The step that is not recorded, by the same kernels and with the same dropout masks."""
        with _recordable():
            loss, logged = body(sample)
            grads = torch.autograd.grad(loss, self.params, torch.full_like(loss, factor), allow_unused=True)
        return Step(loss.detach(), {name: t.detach() for name, t in logged.items()}, grads, factor)

    def _compare(self, recording: Recording, inputs: dict[str, Tensor], expected: Step, shapes: str) -> None:
        """Replay the batch of `expected`; what gradients a batch before it has left there stay."""
        before = [(g, g.clone()) for p, g in zip(self.params, self.grads, strict=True) if _share(p.grad, g)]
        self.serial += 1  # what was replayed before has no backward any more
        try:
            for name, t in inputs.items():
                recording.inputs[name].copy_(t)
            recording.forward()
            recording.factor.fill_(expected.factor)
            recording.backward()
            grads = [g if i in recording.used else None for i, g in enumerate(self.grads)]
            found = Step(recording.loss, recording.logged, grads, expected.factor)
            refuse_another(found, expected, [name for name, _ in _trained(self.model)], shapes)
        finally:
            for g, values in before:
                g.copy_(values)

    def backward(self, recording: Recording, factor: Tensor, serial: int) -> None:
        """Add the gradients of `factor` · loss to those of the parameters."""
        if serial != self.serial:
            raise RuntimeError(
                "--cuda-graphs: the backward of a batch whose activations are overwritten, by another batch or by its "
                "own backward; take the backward of each loss once, before the next forward, or leave it out"
            )
        self.serial += 1
        params, grads = ([of[i] for i in recording.used] for of in (self.params, self.grads))
        # a gradient of before lies where the replay writes (a batch of an update of several), or elsewhere
        here = [i for i, (p, grad) in enumerate(zip(params, grads, strict=True)) if _share(p.grad, grad)]
        before = [grads[i].clone() for i in here]
        recording.factor.copy_(factor)
        recording.backward()
        if here:
            torch._foreach_add_([grads[i] for i in here], before)
        for p, grad in zip(params, grads, strict=True):
            if p.grad is None:
                p.grad = grad
            elif not _share(p.grad, grad):
                p.grad.add_(grad)


def _share(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.data_ptr() == b.data_ptr()


def _first(error: BaseException) -> BaseException:
    """What failed first: to end a recording that has failed is an error of its own."""
    while error.__context__ is not None and not error.__suppress_context__:
        error = error.__context__
    return error


# of the gradients that are compared; in half precision those of a loss that is not scaled down may not be finite
_FACTORS = (1.0, 2.0**-8, 2.0**-16)
_PLAIN = (Tensor, str, int, float)  # what a batch may consist of, so that a key tells it from others


class _Given:
    """What recordings of a model take as given: its modules, their tensors, switches and rates, such as dropout's p.

    Tensors are also those that are neither parameters nor buffers, such as fairseq's tables of positions. They are
    held, so that no other takes the place of one that is replaced. Each step asks, so the places are kept.
    """

    def __init__(self, model: nn.Module | None) -> None:
        modules = [] if model is None else list(model.modules())
        self.children = [(m._modules, list(m._modules.values())) for m in modules]
        homes = [home for m in modules for home in (vars(m), m._parameters, m._buffers)]
        found = [(home, name, value) for home in homes for name, value in home.items()]
        self.rates = [(home, name, value) for home, name, value in found if type(value) in _RATES]
        tensors = [(home, name, t) for home, name, t in found if isinstance(t, Tensor)]
        self.tensors = [(home, name, t, t.data_ptr(), t.requires_grad) for home, name, t in tensors]
        self.hooks = [vars(m)[name] for m in modules for name in _HOOKS]
        self.params = [t for _, _, t in tensors if isinstance(t, nn.Parameter)]

    def holds(self) -> bool:
        return (
            all(list(home.values()) == values for home, values in self.children)
            and all(home.get(name) == value for home, name, value in self.rates)
            and all(
                home.get(name) is t and t.data_ptr() == place and t.requires_grad == trained
                for home, name, t, place, trained in self.tensors
            )
        )

    def hooked(self) -> bool:
        """Whether there are hooks, which a replay would not call."""
        return (
            _has_any_global_hook()
            or any(self.hooks)
            or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in self.params)
        )


_RATES = (float, bool)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def _trained(model: nn.Module | None) -> list[tuple[str, nn.Parameter]]:
    return [] if model is None else [(name, p) for name, p in model.named_parameters() if p.requires_grad]


class _Holder(nn.Module):
    """A module whose forward is a function of a sample, which uses the model."""

    def __init__(self, model: nn.Module | None, body: Body) -> None:
        super().__init__()
        self.model = model
        self.body = body

    def forward(self, sample: dict[str, Any]) -> tuple[Tensor, Logged]:
        return self.body(sample)


class _Replayed(torch.autograd.Function):
    """The loss of a replayed forward, whose backward is a replay, too."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graphs: Graphs, recording: Recording) -> Tensor:
        ctx.of = graphs, recording, graphs.serial
        return recording.loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[None, None, None]:
        graphs, recording, serial = ctx.of
        graphs.backward(recording, factor, serial)
        return None, None, None
