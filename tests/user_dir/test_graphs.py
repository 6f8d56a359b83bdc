"""`--cuda-graphs`: recorded steps train as others do. On a CPU a stand-in records; the gpu tests take CUDA's graphs."""

from __future__ import annotations

import contextlib
import copy
import logging
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions import CRITERION_REGISTRY, build_criterion
from fairseq.modules.quantization.scalar import quantize_model_
from macaron.user_dir import graphs
from macaron.user_dir.graphs import Recording

from macaron import MacaronModel
from macaron.ops._backend import launches_are_free

NAME, PAD = "macaron_label_smoothed_cross_entropy", 1
SMALL = {"encoder_embed_dim": 16, "encoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1}


def model(toy_task, dropout=0.0, **options):
    args = MacaronModel.config(**SMALL, encoder_ffn_embed_dim=16, dropout=dropout, **options)
    return MacaronModel.build_model(args, toy_task()).train()


def criterion(toy_task, **options):
    return CRITERION_REGISTRY[NAME](toy_task(), options.pop("sentence_avg", False), 0.1, **options)


def tokens(*lengths: int) -> torch.Tensor:
    batch = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = torch.randint(4, 40, (length,))
    return batch


def sample(*lengths: int) -> dict[str, Any]:
    """Batches of equal lengths are of one shape."""
    target = tokens(*lengths)
    previous = torch.cat([torch.full((len(lengths), 1), 2), target[:, :-1]], dim=1)
    source = tokens(*(n + 1 for n in lengths))
    net_input = {"src_tokens": source, "src_lengths": torch.tensor(lengths) + 1, "prev_output_tokens": previous}
    return {"net_input": net_input, "target": target, "ntokens": sum(lengths)}


class StandIn:
    """Records nothing, and runs the recorded body anew for a replay, on the same static tensors as a graph."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, body, inputs, params, grads, pool) -> Recording:
        self.recorded += 1
        inputs = {name: t.clone() for name, t in inputs.items()}
        loss, logged = body(inputs)
        used = [i for i, g in enumerate(torch.autograd.grad(loss, params, allow_unused=True)) if g is not None]
        made = Recording(
            inputs, loss.detach(), {k: t.clone() for k, t in logged.items()}, torch.ones(()), None, None, used
        )

        def forward() -> None:
            self.replayed += 1
            made.graph, now = body(inputs)
            made.loss.copy_(made.graph.detach())
            for name, t in now.items():
                made.logged[name].copy_(t)

        def backward() -> None:
            found = torch.autograd.grad(made.graph, [params[i] for i in used], made.factor)
            for i, grad in zip(used, found, strict=True):
                grads[i].copy_(grad)

        made.forward, made.backward = forward, backward
        return made


def recorded(toy_task, limit: int = 4, **options):
    made = criterion(toy_task, cuda_graphs=limit, **options)
    made.graphs.recorder = StandIn()
    return made


def step(made, built, batches, *, factor=1.0, clear=True):
    """Losses and logs, and the gradients after all of the batches."""
    if clear:
        for p in built.parameters():
            p.grad = None
    found = []
    for batch in batches:
        loss, size, log = made(built, batch)
        (loss * factor).backward()
        found.append((float(loss.detach()), size, {k: float(v) for k, v in log.items()}))
    return found, [None if p.grad is None else p.grad.clone() for p in built.parameters()]


def check(ours, theirs) -> None:
    assert ours[0] == theirs[0]
    for a, b in zip(ours[1], theirs[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"sentence_avg": True}, {"ignore_prefix_size": 2}], ids=str)
def test_replays_are_steps(toy_task, options):
    """Losses, logs and gradients of three shapes in mixed order, first seen, recorded, and replayed."""
    built = model(toy_task)
    ours, theirs = recorded(toy_task, **options), criterion(toy_task, **options)
    for lengths in ((6, 3, 5), (4, 4), (6, 3, 5), (6, 5, 5), (4, 3), (7,), (5, 6, 1), (4, 1)):
        batch = sample(*lengths)
        check(step(ours, built, [batch]), step(theirs, built, [batch]))
    assert ours.graphs.recorder.recorded == 2 and ours.graphs.recorder.replayed == 5 + 2  # and one each to compare


@pytest.mark.parametrize("shared", ["share_all_embeddings", "share_decoder_input_output_embed"])
def test_what_is_tied_stays_tied(toy_task, shared):
    """A module in two places, and a parameter in two modules; replays and steps as ever by turns."""
    task = toy_task()
    built = model(lambda: task, **{shared: True})
    ours, theirs = recorded(toy_task), criterion(toy_task)
    before = dict(built.named_parameters(remove_duplicate=False))
    for lengths in ((6, 3), (6, 3), (4,), (6, 3), (5,)):
        batch = sample(*lengths)
        check(step(ours, built, [batch]), step(theirs, built, [batch]))
    after = dict(built.named_parameters(remove_duplicate=False))
    assert before.keys() == after.keys() and all(before[name] is p for name, p in after.items())
    assert ours.graphs.recorder.recorded and built.decoder.output_projection.weight is built.decoder.embed_tokens.weight


@pytest.mark.parametrize("order", ["AAA", "ABAB", "ACBA", "CAC"])
def test_gradients_of_several_batches_add_up(toy_task, order):
    """`--update-freq`; A and B are recorded, C is not. A factor, as a loss scale or `ignore_grad` is."""
    built = model(toy_task)
    ours, theirs = recorded(toy_task), criterion(toy_task)
    shapes = {"A": (6, 3), "B": (4, 4, 2), "C": (5,)}
    for name in "AABB":
        step(ours, built, [sample(*shapes[name])])
    for factor in (1.0, 1024.0, 0.0):
        ours.graphs.seen.clear()
        batches = [sample(*shapes[name]) for name in order]
        check(step(ours, built, batches, factor=factor), step(theirs, built, batches, factor=factor))
        check(step(ours, built, batches), step(theirs, built, batches))


def test_gradients_that_were_cleared_to_zeros_begin_anew(toy_task):
    built, batch = model(toy_task), sample(6, 3)
    ours, theirs = recorded(toy_task), criterion(toy_task)
    for _ in range(3):
        step(ours, built, [batch])
    built.zero_grad(set_to_none=False)
    check(step(ours, built, [batch], clear=False), step(theirs, built, [batch]))


def test_validation_and_what_has_hooks_is_run_as_ever(toy_task):
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    for _ in range(3):
        step(made, built, [batch])
    before = made.graphs.recorder.replayed
    with torch.no_grad():
        made(built, batch)
        made(built.eval(), batch)
    made(built.train(), batch, reduce=False)
    with built.register_forward_hook(lambda *a: None):
        made(built, batch)
    assert made.graphs.recorder.replayed == before
    made(built, batch)
    assert made.graphs.recorder.replayed == before + 1


def test_no_more_shapes_than_allowed(toy_task, caplog):
    built, made = model(toy_task), recorded(toy_task, limit=1)
    with caplog.at_level(logging.INFO, logger=graphs.__name__):
        for lengths in ((6, 3), (4,), (6, 3), (4,), (4,)):
            step(made, built, [sample(*lengths)])
    assert made.graphs.recorder.recorded == 1
    told, also = [message for message in caplog.messages if "CUDA graphs" in message]
    assert told.startswith("CUDA graphs: 1 of at most 1, of batches with src_tokens 2×7")
    assert "since its shape is another than the 1 that are recorded; --num-batch-buckets makes fewer" in also
    assert criterion(toy_task).graphs(built, sample(6), None) is None  # none are asked for


def test_parameters_that_moved_are_recorded_anew(toy_task):
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    for _ in range(3):
        step(made, built, [batch])
    for p in built.parameters():
        p.data = p.data.clone() * 1.5
    for _ in range(3):
        check(step(made, built, [batch]), step(criterion(toy_task), built, [batch]))
    assert made.graphs.recorder.recorded == 2


def test_another_model_is_recorded_for_itself(toy_task):
    first, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    second = copy.deepcopy(first)
    with torch.no_grad():
        second.decoder.embed_tokens.weight.mul_(0.5)
    for built in (first, first, second, second, second, first):
        check(step(made, built, [batch]), step(criterion(toy_task), built, [batch]))


@pytest.mark.parametrize("change", ["freeze", "replace", "table", "rate"])
def test_what_a_recording_took_as_given_and_has_changed_is_recorded_anew(toy_task, change, caplog):
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    for _ in range(3):
        step(made, built, [batch])
    projection, positions = built.decoder.layers[0].flows[0].fc1, built.encoder.embed_positions
    if change == "freeze":
        projection.weight.requires_grad_(False)
    elif change == "replace":
        projection.weight = torch.nn.Parameter(projection.weight.detach() * 2)
    elif change == "table":  # neither a parameter nor a buffer; fairseq replaces it when sentences are longer
        positions.weights = positions.weights * 2
    else:
        built.encoder.dropout_module.p = 1e-9
    for _ in range(3):
        check(step(made, built, [batch]), step(criterion(toy_task), built, [batch]))
    assert made.graphs.recorder.recorded == 2 and made.graphs.recorder.replayed == 4 + 2
    assert "1 are dropped and made anew" in caplog.text


@pytest.mark.parametrize("kind", ["module", "parameter", "everywhere"])
def test_hooks_within_a_model_are_called(toy_task, kind, caplog):
    caplog.set_level(logging.INFO, logger=graphs.__name__)
    built, batch, made, calls = model(toy_task), sample(6, 3), recorded(toy_task), []
    for _ in range(3):
        step(made, built, [batch])
    projection = built.decoder.layers[0].flows[0].fc1
    handle = {
        "module": lambda: projection.register_forward_hook(lambda *a: calls.append(1)),
        "parameter": lambda: projection.weight.register_hook(lambda grad: calls.append(1)),
        "everywhere": lambda: torch.nn.modules.module.register_module_forward_hook(lambda *a: calls.append(1)),
    }[kind]()
    before = made.graphs.recorder.replayed
    step(made, built, [batch])
    handle.remove()
    assert calls and made.graphs.recorder.replayed == before
    assert "since the model has hooks, which no replay calls" in caplog.text
    step(made, built, [batch])
    assert made.graphs.recorder.replayed == before + 1


def test_a_gradient_of_before_that_lies_in_the_same_memory_counts_once(toy_task):
    built, batch = model(toy_task), sample(6, 3)
    ours, theirs = recorded(toy_task), criterion(toy_task)
    for _ in range(3):
        step(ours, built, [batch])
    for p in built.parameters():
        p.grad = p.grad.detach()
    found, grads = step(ours, built, [batch], clear=False)
    check((found * 2, grads), step(theirs, built, [batch, batch]))


def test_batches_of_more_than_tensors_and_numbers_are_run_as_ever(toy_task, caplog):
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    odd = {**batch, "net_input": {**batch["net_input"], "more": [torch.zeros(2000)]}}
    with caplog.at_level(logging.INFO, logger=graphs.__name__):
        assert [made.graphs(built, odd, None) for _ in range(3)] == [None] * 3
    (told,) = [message for message in caplog.messages if "CUDA graphs" in message]
    assert "is run as ever, and others like it, since it holds more beside tensors, numbers and words" in told


def test_a_step_of_rdrop_reads_no_random_state(toy_task, monkeypatch):
    """Which raises while a graph is recorded."""
    built, batch = model(toy_task), sample(6, 3)
    ours, theirs = recorded(toy_task, rdrop_alpha=5.0), criterion(toy_task, rdrop_alpha=5.0)
    record = ours.graphs.recorder

    def recorder(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "get_rng_state", lambda: pytest.fail("a random state is read"))
            return record(*arguments)

    ours.graphs.recorder = recorder
    for _ in range(3):
        check(step(ours, built, [batch]), step(theirs, built, [batch]))
    assert record.replayed == 2 + 1


def test_without_memory_for_another_shape_it_is_run_as_ever(toy_task, caplog):
    built, made, theirs = model(toy_task), recorded(toy_task), criterion(toy_task)
    for _ in range(2):
        step(made, built, [sample(6, 3)])
    record, tries = made.graphs.recorder, []

    def fails(*arguments):
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    made.graphs.recorder = fails
    for _ in range(4):
        batch = sample(4, 4)
        check(step(made, built, [batch]), step(theirs, built, [batch]))
    assert len(tries) == 1 and "no memory for more than 1" in caplog.text
    before = record.replayed
    step(made, built, [sample(6, 3)])
    assert record.replayed == before + 1


def test_a_second_backward_is_refused(toy_task):
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    for _ in range(3):
        step(made, built, [batch])
    loss, _, _ = made(built, batch)
    loss.backward()
    with pytest.raises(RuntimeError, match="take the backward of each loss once"):
        loss.backward()


def test_a_backward_that_comes_too_late_is_refused(toy_task):
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    for _ in range(3):
        step(made, built, [batch])
    first, _, _ = made(built, batch)
    second, _, _ = made(built, batch)
    second.backward()
    with pytest.raises(RuntimeError, match="take the backward of each loss once, before the next forward"):
        first.backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder_layerdrop": 0.5}, "--encoder-layerdrop and --decoder-layerdrop draw layers on the host"),
        (
            {"stochastic_depth": 0.2, "encoder_normalize_before": True, "decoder_normalize_before": True},
            "--stochastic-depth draws layers on the host",
        ),
        ({"checkpoint_activations": True}, "--checkpoint-activations restores random states on the host"),
        ({"compile": True}, "--compile has graphs of its own"),
        ({"quant_noise_pq": 0.1}, "--quant-noise-pq draws blocks on the host"),
        ({"solver": "heun"}, "a --solver of several stages restores random states on the host"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_the_host_decides_anew_is_refused(toy_task, options, message):
    built, made = model(toy_task, **options), recorded(toy_task)
    with pytest.raises(ValueError, match=f"--cuda-graphs cannot be combined: .*{message}"):
        made(built, sample(6, 3))


def test_quant_noise_by_scalars_is_refused(toy_task):
    built, made = model(toy_task), recorded(toy_task)
    quantize_model_(built, p=0.5, bits=8)
    with pytest.raises(ValueError, match="--cuda-graphs cannot be combined: --quant-noise-scalar counts steps"):
        made(built, sample(6, 3))


def test_bad_uses_are_refused(toy_task, monkeypatch):
    with pytest.raises(ValueError, match="--cuda-graphs -1 must not be negative"):
        criterion(toy_task, cuda_graphs=-1)
    built = model(toy_task)
    with pytest.raises(ValueError, match="--cuda-graphs 3 needs a GPU, and this batch is on a CPU; leave it out"):
        criterion(toy_task, cuda_graphs=3)(built, sample(6, 3))
    with pytest.raises(ValueError, match="--cuda-graphs 3 needs a plain output projection"):
        recorded(toy_task, limit=3, report_accuracy=True)(built, sample(6, 3))
    attack = {"adversary": "pgd-1", "adversary_norm": "l2", "adversary_step_size": 0.1, "adversary_radius": 0.3}
    asked = Namespace(criterion="macaron_adversarial", inner=NAME, label_smoothing=0.1, cuda_graphs=3, **attack)
    with pytest.raises(ValueError, match="--cuda-graphs 3 replays a pass, which an adversary has to change"):
        build_criterion(asked, toy_task())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="gradients are reduced between processes; train with one"):
        recorded(toy_task)(built, sample(6, 3))


def test_a_step_that_fails_by_itself_says_so_itself(toy_task):
    """Which has nothing to do with a recording."""
    built, made = model(toy_task), recorded(toy_task)

    def body(batch):
        raise RuntimeError("index out of range in self")

    assert made.graphs(built, sample(6, 3), body) is None
    with pytest.raises(RuntimeError, match=r"^index out of range in self$"):
        made.graphs(built, sample(6, 3), body)


def test_a_step_that_reads_more_of_a_batch_is_refused(toy_task):
    """In each replay it would be that of the batch that was recorded."""
    built, made = model(toy_task), recorded(toy_task)

    def body(batch):
        loss, logged = made._losses(built, batch, True)
        return loss / batch["ntokens"], logged

    assert made.graphs(built, sample(6, 3), body) is None
    with pytest.raises(ValueError, match=r"this step cannot be recorded \(KeyError: 'ntokens'\); leave it out"):
        made.graphs(built, sample(6, 3), body)


def test_whether_there_is_any_padding_is_the_only_question_answered_without_looking(toy_task, monkeypatch):
    monkeypatch.setattr(graphs, "on_accelerator", lambda t: True)
    none = torch.zeros(3, dtype=torch.bool)
    with graphs._TakePadding():
        assert none.any() and torch.any(none) and bool(none.any())
        assert not none[0] and not none.sum() and not none.all() and not none.any().clone()
    assert not none.any()
    # fairseq's encoder asks so, and a mask that hides nothing changes nothing
    built, batch = model(toy_task), sample(5, 5)
    expected = criterion(toy_task)(built, batch)[0]
    with graphs._TakePadding() as mode:
        found = criterion(toy_task)(built, batch)[0]
    assert mode.asked
    torch.testing.assert_close(found, expected)


class Cuda:
    """What `record` asks of torch.cuda, without a GPU: what runs in `graph` is noted, and runs."""

    def __init__(self, monkeypatch) -> None:
        self.captured: list[dict[str, Any]] = []
        self.waits: list[tuple[Any, Any]] = []
        self.here = SimpleNamespace(wait_stream=lambda other: self.waits.append(("here", other)))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.here)
        side = SimpleNamespace(wait_stream=lambda other: self.waits.append(("side", other)))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    def graph(self, graph, **options):
        self.captured.append(options)
        return contextlib.nullcontext()


def test_a_recording_is_not_disturbed_by_the_thread_that_pins_memory(monkeypatch):
    cuda, params = Cuda(monkeypatch), [torch.randn(3, requires_grad=True), torch.randn(2, requires_grad=True)]
    grads = [torch.zeros(3), torch.zeros(2)]
    made = graphs.record(lambda inputs: ((params[0] * inputs["x"]).sum(), {}), {"x": torch.ones(3)}, params, grads, 7)
    assert cuda.captured == [{"pool": 7, "capture_error_mode": "thread_local"}] * 2
    assert made.used == [0] and grads[0].tolist() == [1, 1, 1] and not grads[1].any()


def test_a_recording_that_fails_leaves_nothing_behind(monkeypatch):
    cuda = Cuda(monkeypatch)

    def body(inputs):
        assert launches_are_free()
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        graphs.record(body, {}, [], [], None)
    assert not launches_are_free() and [who for who, _ in cuda.waits] == ["side", "here"]
    assert torch._C._len_torch_function_stack() == 0


def test_what_cannot_be_recorded_says_why(toy_task):
    built, made = model(toy_task), recorded(toy_task)

    def fails(*arguments):
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:  # as torch.cuda.graph leaves it
            raise RuntimeError("operation failed due to a previous error during capture")

    made.graphs.recorder = fails
    made(built, sample(6, 3))
    with pytest.raises(ValueError, match=r"this step cannot be recorded \(operation not permitted .*\); leave it out"):
        made(built, sample(6, 3))


# --- the comparison before the first replay -----------------------------------------------------------------------


class Wrong(StandIn):
    """Something is wrong with what is recorded: `spoil` changes it after each replay of forward or of backward."""

    def __init__(self, forward=lambda made: None, backward=lambda grads: None, used=lambda used: used) -> None:
        super().__init__()
        self.spoils, self.used = (forward, backward), used

    def __call__(self, body, inputs, params, grads, pool) -> Recording:
        made = super().__call__(body, inputs, params, grads, pool)
        forward, backward, (first, second) = made.forward, made.backward, self.spoils
        made.used, made.first = self.used(made.used), made.loss.clone()
        made.forward = lambda: (forward(), first(made))
        made.backward = lambda: (backward(), second([grads[i] for i in made.used]))
        return made


def last_of(grads):
    return max(grads, key=lambda g: float(g.norm()))


WRONG = {
    "loss": (Wrong(forward=lambda made: made.loss.mul_(1.01)), r"loss is [\d.]+, not [\d.]+, for batches with src_tok"),
    "log": (Wrong(forward=lambda made: made.logged["nll_loss"].mul_(1.01)), "nll_loss is"),
    "nan": (Wrong(forward=lambda made: made.loss.fill_(torch.nan)), "loss is nan"),
    "scaled": (Wrong(backward=lambda grads: last_of(grads).mul_(1.01)), r"is off by 0\.01 of its norm, where rounding"),
    "stale": (Wrong(backward=lambda grads: last_of(grads).zero_()), r"is off by 1 of its norm"),
    "gradient nan": (Wrong(backward=lambda grads: last_of(grads).view(-1)[0].fill_(torch.nan)), "is off by nan"),
    "one missing": (Wrong(used=lambda used: used[1:]), "has a gradient in one of them alone"),
    "another batch": (Wrong(forward=lambda made: made.loss.copy_(made.first)), r"loss is [\d.]+, not [\d.]+"),
}


@pytest.mark.parametrize(("recorder", "message"), WRONG.values(), ids=list(WRONG))
def test_a_recording_that_is_another_step_is_refused(toy_task, recorder, message):
    """Before a parameter has seen anything of it, and what gradients there were are not touched."""
    built, made = model(toy_task), recorded(toy_task)
    made.graphs.recorder = recorder
    step(made, built, [sample(6, 3)])
    before = [None if p.grad is None else p.grad.clone() for p in built.parameters()]
    with pytest.raises(ValueError, match=f"a recorded step is not the step that was recorded: .*{message}") as error:
        made(built, sample(6, 3))
    assert "src_tokens 2×7, src_lengths 2, prev_output_tokens 2×6, target 2×6. Nothing has been" in str(error.value)
    for p, grad in zip(built.parameters(), before, strict=True):
        assert (p.grad is None) == (grad is None) and (grad is None or torch.equal(p.grad, grad))


def test_a_later_recording_that_is_another_step_is_left_alone(toy_task, caplog):
    """Training goes on, by what was recorded before and by steps as ever."""
    built, made, theirs = model(toy_task), recorded(toy_task), criterion(toy_task)
    for _ in range(2):
        step(made, built, [sample(6, 3)])
    right = made.graphs.recorder
    made.graphs.recorder = wrong = Wrong(forward=lambda recording: recording.loss.mul_(1.01))
    for _ in range(3):
        batch = sample(4, 4)
        check(step(made, built, [batch]), step(theirs, built, [batch]))
    assert wrong.recorded == 1 and made.graphs.limit == 1
    (told,) = [message for message in caplog.messages if "is not the step" in message]
    assert "target 2×4" in told and told.endswith("No more are recorded; batches of other shapes are run as ever")
    first, _, _ = made(built, sample(6, 3))
    made.graphs.limit = 2
    made(built, sample(4, 4))  # compared anew, in the memory of the first
    with pytest.raises(RuntimeError, match="whose activations are overwritten"):
        first.backward()
    before, batch = right.replayed, sample(6, 3)
    check(step(made, built, [batch]), step(theirs, built, [batch]))
    assert right.replayed == before + 1


@pytest.mark.parametrize("fault", ["another step", "no memory"])
def test_a_comparison_that_fails_leaves_gradients_of_before_alone(toy_task, fault, monkeypatch):
    """A batch of an update of several, whose gradients lie where the next shape's replay leaves its own."""
    built, made, theirs = model(toy_task), recorded(toy_task), criterion(toy_task)
    for _ in range(2):
        step(made, built, [sample(6, 3)])
    step(made, built, [sample(4, 4)])
    made.graphs.recorder = Wrong(backward=lambda grads: torch._foreach_mul_(grads, 3.0))
    if fault == "no memory":

        def refuse(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(graphs, "refuse_another", refuse)
    batches = [sample(6, 3), sample(4, 4)]
    check(step(made, built, batches), step(theirs, built, batches))
    assert made.graphs.recorder.replayed == 1 and made.graphs.limit == 1


def test_a_wrong_recording_ends_no_training_that_recordings_have_served(toy_task, caplog):
    """Not even where they are made anew, since the model's tensors have changed."""
    built, batch, made, theirs = model(toy_task), sample(6, 3), recorded(toy_task), criterion(toy_task)
    for _ in range(2):
        step(made, built, [batch])
    built.encoder.embed_positions.weights = built.encoder.embed_positions.weights * 2
    made.graphs.recorder = Wrong(forward=lambda recording: recording.loss.mul_(1.01))
    for _ in range(3):
        check(step(made, built, [batch]), step(theirs, built, [batch]))
    assert made.graphs.limit == 0 and not made.graphs.grads and "No more are recorded" in caplog.text


class Counts(torch.nn.Module):
    """A buffer that each forward changes, in its place or not, as running means are."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.inplace:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x


def test_a_recording_leaves_buffers_that_the_forward_changes_alone(toy_task):
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    built.encoder.dropout_module = Counts(inplace=True)
    for _ in range(4):
        step(made, built, [batch])
    assert made.graphs.recorder.recorded == 1 and float(built.encoder.dropout_module.calls) == 4


def test_a_forward_that_replaces_what_the_model_holds_is_refused(toy_task):
    built, made = model(toy_task), recorded(toy_task)
    built.encoder.dropout_module = Counts(inplace=False)
    made(built, sample(6, 3))
    with pytest.raises(ValueError, match=r"cannot be recorded \(its forward puts other tensors, modules or r"):
        made(built, sample(6, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_what_is_recorded_passes_in_any_precision_and_with_dropout(toy_task, dtype):
    built = model(toy_task, dropout=0.3, attention_dropout=0.1).to(dtype)
    made = recorded(toy_task, rdrop_alpha=1.0)
    for _ in range(3):
        step(made, built, [sample(6, 3)])
    assert made.graphs.recorder.replayed == 2 + 1


def test_the_comparison_leaves_gradients_of_before_and_random_states_alone(toy_task):
    """A batch of an update of several, whose gradients lie where the next shape's replay leaves its own."""
    built = model(toy_task, dropout=0.3)
    ours = recorded(toy_task)
    for _ in range(2):
        step(ours, built, [sample(6, 3)])
    step(ours, built, [sample(4, 4)])
    a, b = sample(6, 3), sample(4, 4)
    torch.manual_seed(3)
    found = step(ours, built, [a, b])  # the second is recorded here
    torch.manual_seed(3)
    again = step(ours, built, [a, b])  # and replayed alone
    assert ours.graphs.recorder.recorded == 2
    check(found, again)


def test_a_step_of_no_gradient_at_all_is_recorded(toy_task):
    """Such as one whose targets are all ignored."""
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    empty = {**batch, "target": torch.full_like(batch["target"], PAD)}
    for _ in range(3):
        check(step(made, built, [empty]), step(criterion(toy_task), built, [empty]))
    assert made.graphs.recorder.recorded == 1


def test_a_step_that_is_not_finite_is_not_recorded(toy_task):
    """There is nothing to compare a replay with; the next batch of that shape is tried."""
    built, batch, made = model(toy_task), sample(6, 3), recorded(toy_task)
    weight = built.decoder.output_projection.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[5, 0] = torch.inf
    for _ in range(3):
        step(made, built, [batch])
    assert made.graphs.recorder.recorded == 0
    with torch.no_grad():
        weight.copy_(before)
    check(step(made, built, [batch]), step(criterion(toy_task), built, [batch]))
    assert made.graphs.recorder.recorded == 1


def test_a_step_that_is_never_finite_is_tried_less_and_less_often(toy_task, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger=graphs.__name__)
    built, batch, made, tries = model(toy_task), sample(6, 3), recorded(toy_task), []
    with torch.no_grad():
        built.decoder.output_projection.weight[5, 0] = torch.inf
    expected = made.graphs._expected
    monkeypatch.setattr(made.graphs, "_expected", lambda *a: tries.append(made.graphs.seen.total()) or expected(*a))
    for _ in range(19):
        step(made, built, [batch])
    assert sorted(set(tries)) == [2, 4, 8, 16]
    (told,) = [message for message in caplog.messages if "CUDA graphs" in message]
    assert "since its loss or its gradients are not finite; it is tried anew later" in told


def test_gradients_in_half_that_need_a_loss_scale_below_one_are_compared_under_one(toy_task):
    built, made = model(toy_task).half(), recorded(toy_task)

    def body(batch):
        loss, logged = made._losses(built, batch, True)
        return loss * 2.0**20, logged

    for _ in range(3):
        found = made.graphs(built, sample(6, 3), body)
    (found[0] * 2.0**-20).backward()
    assert made.graphs.recorder.recorded == 1
    assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())


# --- on a GPU -----------------------------------------------------------------------------------------------------


def on_gpu(batch: dict[str, Any]) -> dict[str, Any]:
    net_input = {name: t.cuda() for name, t in batch["net_input"].items()}
    return {**batch, "net_input": net_input, "target": batch["target"].cuda()}


def gpu_model(toy_task, dtype, **options):
    return model(toy_task, **options).to("cuda", dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_replays_are_steps_on_a_gpu(toy_task, dtype, tied):
    task = toy_task()
    built = gpu_model(lambda: task, dtype, dropout=0.0, share_all_embeddings=tied)
    ours, theirs = criterion(toy_task, cuda_graphs=4), criterion(toy_task)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    for lengths in ((6, 3, 5), (4, 4), (6, 3, 5), (6, 5, 5), (4, 3), (5, 6, 1), (4, 1)):
        batches = [on_gpu(sample(*lengths)), on_gpu(sample(*lengths))]
        (a, grads), (b, expected) = step(ours, built, batches), step(theirs, built, batches)
        for (one, size, log), (other, other_size, other_log) in zip(a, b, strict=True):
            assert one == pytest.approx(other, rel=1e-5 if dtype == torch.float32 else 1e-2) and size == other_size
            assert log.keys() == other_log.keys()
        for g, e in zip(grads, expected, strict=True):
            torch.testing.assert_close(g, e, **close)
    assert len(ours.graphs.known) == 2


@pytest.mark.gpu
def test_each_replay_draws_its_own_dropout_masks(toy_task):
    built, made = (
        gpu_model(toy_task, torch.float32, dropout=0.3, attention_dropout=0.1),
        criterion(toy_task, cuda_graphs=1),
    )
    batch, losses = on_gpu(sample(6, 3, 5)), []
    for _ in range(6):
        ((loss, _, _),) = step(made, built, [batch])[0]
        losses.append(loss)
    assert len(set(losses)) == 6 and len(made.graphs.known) == 1
    torch.manual_seed(5)
    first = step(made, built, [batch])
    torch.manual_seed(5)
    check(step(made, built, [batch]), first)
