"""`--optimizer macaron_adam`: fairseq's Adam, number by number, and its checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from fairseq.optim import OPTIMIZER_REGISTRY
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer
from omegaconf import OmegaConf

SHAPES = [(7, 5), (5,), (3, 2, 4), ()]


def build(name: str, params: list[torch.nn.Parameter], **overrides):
    cfg = FairseqAdamConfig(adam_betas="(0.9, 0.98)", adam_eps=1e-3, weight_decay=0.1)
    cfg.lr, cfg.tpu = [0.05], False
    for key, value in overrides.items():
        setattr(cfg, key, value)
    return OPTIMIZER_REGISTRY[name](cfg, params)


# Some ε a step: ours multiplies and divides in another order. A step is of 1e-3 and more.
ROUNDING = {torch.float64: {"rtol": 1e-14, "atol": 1e-14}, torch.float32: {"rtol": 1e-6, "atol": 1e-6}}


def parameters(dtype=torch.float32) -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in SHAPES]


def advance(optimizer, params, steps, first=0, skip=()) -> None:
    """`steps` updates with gradients that depend on the number of the step alone; `skip`: (step, parameter)."""
    for step in range(first, first + steps):
        torch.manual_seed(100 + step)
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, dtype=torch.float64).to(p.dtype) * 10 ** -(i % 4)
            p.grad = None if (step, i) in skip else grad
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_updates_are_those_of_fairseq(dtype):
    ours, theirs = parameters(dtype), parameters(dtype)
    # parameter 1 joins at the third step, so that the counts differ
    skip = {(0, 1), (1, 1)}
    a, b = build("macaron_adam", ours), build("adam", theirs)
    advance(a, ours, 6, skip=skip)
    advance(b, theirs, 6, skip=skip)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, **ROUNDING[dtype])
    assert a.state_dict()["state"].keys() == b.state_dict()["state"].keys()
    assert all(a.state_dict()["state"][i]["step"] == b.state_dict()["state"][i]["step"] for i in range(4))


@pytest.mark.parametrize("order", [("adam", "macaron_adam"), ("macaron_adam", "adam")], ids="-".join)
def test_either_goes_on_from_the_state_of_the_other(order):
    first, second = order
    whole = parameters(torch.float64)
    advance(build("adam", whole), whole, 5)
    params = parameters(torch.float64)
    before = build(first, params)
    advance(before, params, 3)
    after = build(second, params)
    after.load_state_dict(before.state_dict())
    advance(after, params, 2, first=3)
    for p, q in zip(params, whole, strict=True):
        torch.testing.assert_close(p, q, **ROUNDING[torch.float64])


def test_half_precision_parameters_take_the_loop_of_fairseq():
    ours, theirs = parameters(torch.bfloat16), parameters(torch.bfloat16)
    advance(build("macaron_adam", ours), ours, 3)
    advance(build("adam", theirs), theirs, 3)
    assert all(torch.equal(p, q) for p, q in zip(ours, theirs, strict=True))


def test_the_name_in_checkpoints_is_that_of_fairseq():
    assert OPTIMIZER_REGISTRY["macaron_adam"].__name__ == OPTIMIZER_REGISTRY["adam"].__name__


def test_use_old_adam_is_fairseqs_own():
    optimizer = build("macaron_adam", parameters(), use_old_adam=True)
    assert type(optimizer.optimizer).__module__ == "fairseq.optim.adam"


def test_training_changes_neither_loss_nor_resuming(trained, train, tiny_data_bin, batches):
    """The same losses as with `--optimizer adam`, going on from its checkpoint."""
    flags = [*batches, "--restore-file", trained.folder / "checkpoint_1_2.pt", "--optimizer", "macaron_adam"]
    resumed = train(tiny_data_bin, *flags)
    assert resumed.losses == trained.losses[2:]
    names = SimpleNamespace(**torch.load(resumed.checkpoint, weights_only=True)["optimizer_history"][-1])
    assert names.optimizer_name == "FairseqAdam"


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_of_the_gradients_and_their_clipping_are_those_of_fairseq(dtype, max_norm):
    results = []
    for name in ("adam", "macaron_adam"):
        params = parameters(dtype)
        for p in params[1:]:  # one has none
            p.grad = torch.randn_like(p)
        optimizer = build(name, params)
        norm = optimizer.clip_grad_norm(max_norm, aggregate_norm_fn=lambda norm: 2 * norm)
        results.append((norm, [p.grad for p in params[1:]]))
    (theirs, their_grads), (ours, our_grads) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    for a, b in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_without_gradients_the_norm_is_zero():
    assert build("macaron_adam", parameters()).clip_grad_norm(1.0) == 0.0


def build_half(name: str, params: list[torch.nn.Parameter], dtype: torch.dtype):
    """As fairseq's trainer with `--bf16`, or with `--fp16 --fp16-no-flatten-grads`."""
    bf16 = dtype == torch.bfloat16
    common = {"bf16": bf16, "fp16": not bf16, "fp16_no_flatten_grads": True, "fp16_init_scale": 4}
    common |= {"fp16_scale_window": None, "min_loss_scale": 1e-4, "fp16_scale_tolerance": 0.0}
    common |= {"threshold_loss_scale": None, "model_parallel_size": 1}
    optimizer = {"_name": name, "lr": [0.05], "adam_betas": "(0.9, 0.98)", "adam_eps": 1e-3, "weight_decay": 0.1}
    optimizer |= {"use_old_adam": False, "fp16_adam_stats": False, "tpu": False}
    whole = {"optimizer": optimizer, "common": common, "optimization": {"update_freq": [1]}}
    cfg = OmegaConf.create({**whole, "distributed_training": {"distributed_world_size": 1}})
    return FP16Optimizer.build_optimizer(cfg, params)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("without", [None, 2], ids=["all", "one without a gradient"])
def test_half_precision_is_updated_as_by_fairseq(dtype, without):
    """The order of the trainer: clear, backward, scale, clip, step; an update without a backward in between."""
    results = []
    for name in ("macaron_adam", "adam"):
        params = parameters(dtype)
        optimizer = build_half(name, params, dtype)
        assert type(optimizer).__module__.startswith("fairseq") == (name == "adam")
        assert type(optimizer).__name__ == "FP16Optimizer"
        norms = []
        for step in range(4):
            optimizer.zero_grad()
            assert all(p.grad is None for p in params) and not any(p.grad.any() for p in optimizer.fp32_params)
            if step != 2:
                torch.manual_seed(step)
                terms = [(p * torch.randn_like(p)).sum() for i, p in enumerate(params) if i != without]
                optimizer.backward(sum(terms))
            optimizer.multiply_grads(0.5)
            norms.append(optimizer.clip_grad_norm(0.7))
            optimizer.step()
        results.append((norms, [p.detach().float() for p in params], optimizer.state_dict()))
    (norms, ours, state), (their_norms, theirs, their_state) = results
    torch.testing.assert_close(torch.stack(norms), torch.stack(their_norms), rtol=1e-6, atol=1e-7)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=4e-3)  # one bit of bfloat16 near 1
    assert state.keys() == their_state.keys() and state["state"].keys() == their_state["state"].keys()
