"""The mask inside the kernels: Philox of (seed, row, column), whatever the launch. The references' dropout."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
import torch.utils.checkpoint

from macaron.ops._dropout import _dropout_mask, dropout_reference
from macaron.ops._triton import OPTIONS

act_dropout_file = importlib.import_module("macaron.ops.act_dropout")
step_norm_file = importlib.import_module("macaron.ops.step_norm")


def philox(key: int, counter: np.ndarray, rounds: int) -> np.ndarray:
    """Philox4x32 of Salmon et al. 2011 on (..., 4) uint32 counters."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(rounds):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, -1)


def expected_mask(seed: int, rows: int, columns: int, dropout: float) -> torch.Tensor:
    counter = np.zeros((rows, -(-columns // 8), 4), np.uint64)
    counter[..., 0] = np.arange(counter.shape[1])
    counter[..., 1] = np.arange(rows)[:, None]
    words = philox(seed, counter, 7)
    halves = np.stack([words & 0xFFFF, words >> 16], -1).reshape(rows, -1)[:, :columns]
    return torch.from_numpy(halves >= int(dropout * 65536 + 0.5))


def test_philox_gives_the_published_numbers():
    """Known answers of the authors' Random123 library, kat_vectors, philox 4x32 10."""
    ones = np.full(4, 0xFFFFFFFF, np.uint64)
    assert [hex(w) for w in philox(0, 0 * ones, 10)] == ["0x6627e8d5", "0xe169c58d", "0xbc57ac4c", "0x9b00dbd8"]
    assert [hex(w) for w in philox(2**64 - 1, ones, 10)] == ["0x408f276d", "0x41c83b0e", "0xa20bc7c6", "0x6d5451fd"]


@pytest.mark.parametrize("seed", [0, 5, 2**62 + 12345])
@pytest.mark.parametrize("shape", [(3, 64), (9, 37), (2, 1100)], ids=str)
def test_mask_is_philox_of_seed_row_and_column(shape, seed, device):
    one, key = torch.ones(shape, device=device), torch.tensor(seed, device=device)
    mask = expected_mask(seed, *shape, 0.3).to(device)
    torch.testing.assert_close(act_dropout_file._act_dropout(one, key, "linear", 0.3), mask / 0.7)
    torch.testing.assert_close(step_norm_file._euler_step(0 * one, one, key, 1.0, 0.3), mask / 0.7)


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("block", [64, 256])
def test_block_sizes_do_not_enter(rows, block, device, monkeypatch):
    x, w, key = torch.randn(11, 50, device=device), torch.randn(50, device=device), torch.tensor(9, device=device)

    def results():
        v, u = (x.clone().requires_grad_() for _ in range(2))
        y, z, _ = step_norm_file._step_norm(x, v, w, w, key, 0.5, 0.4, 1e-5, x.dtype)
        out = act_dropout_file._act_dropout(u, key, "gelu", 0.4)
        return y, out, *torch.autograd.grad((y * z).sum(), v), *torch.autograd.grad(out.sum(), u)

    expected = results()
    tile = {"ROWS": rows, "num_warps": 4, **OPTIONS}
    monkeypatch.setattr(step_norm_file, "_tile", lambda width, **options: {"C": width, "BLOCK": block, **tile})
    # so few columns at a time that a row needs several programs
    monkeypatch.setattr(act_dropout_file, "_tile", lambda width: {"F": width, "BLOCK": block // 4, **tile})
    for e, got in zip(expected, results(), strict=True):
        assert torch.equal(e == 0, got == 0)
        torch.testing.assert_close(got, e)


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_rate_is_kept_in_rows_columns_and_neighbours(dropout, device):
    """Within five standard deviations of a fair draw: all entries, each column, each row, equal neighbours."""
    n, m = 200, 320
    ones = torch.ones(n, m, device=device)
    kept = (act_dropout_file._act_dropout(ones, torch.tensor(3, device=device), "linear", dropout) != 0).float()

    def near(mean, p, count):
        return bool(((mean - p).abs() < 5 * (p * (1 - p) / count) ** 0.5 + 1e-5).all())

    assert near(kept.mean(), 1 - dropout, n * m)
    assert near(kept.mean(0), 1 - dropout, n)
    assert near(kept.mean(1), 1 - dropout, m)
    both = (1 - dropout) ** 2
    for shift, dim in ((1, 0), (1, 1), (2, 1), (4, 1), (8, 1)):
        assert near(
            (kept * kept.roll(shift, dim)).mean(), both, n * m / 3
        )  # products overlap, so fewer are independent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_reference_drops_that_share_and_scales_the_rest(p, dtype):
    x = torch.randn(100, 101).to(dtype).t().requires_grad_()  # strided
    y = dropout_reference(x, p)
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - p))
    assert (~kept).double().mean() == pytest.approx(p, abs=0.02)  # 5 standard deviations
    assert (~kept[:, ::4]).double().mean() == pytest.approx(p, abs=0.05)  # four entries share a random number
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept.to(dtype) / (1 - p))


def test_reference_at_the_edges():
    for shape in ((), (1,), (3,), (0, 4), (5, 0)):
        assert dropout_reference(torch.ones(shape), 0.5).shape == shape
    x = torch.randn(7)
    assert dropout_reference(x, 0.0) is x
    assert dropout_reference(torch.ones(1000), 1 - 1e-9).count_nonzero() <= 2


def test_the_masks_operator():
    """What torch.compile calls in place of drawing numbers itself."""
    x = torch.randn(6, 7)
    seed = torch.tensor(7)
    torch.library.opcheck(_dropout_mask, (x, seed, 0.25))
    assert torch.equal(_dropout_mask(x, seed, 0.25), _dropout_mask(-x, seed, 0.25))
    assert not torch.equal(_dropout_mask(x, seed, 0.25), _dropout_mask(x, seed + 1, 0.25))
    compiled = torch.compile(lambda x: dropout_reference(dropout_reference(x, 0.5), 0.5), backend="aot_eager")
    first = compiled(torch.ones(10_000, requires_grad=True))
    assert first.detach().unique().tolist() == [0, 4]
    assert first.count_nonzero() == pytest.approx(2500, abs=250)  # two masks, not one twice


@pytest.mark.parametrize("reentrant", [False, True])
def test_reference_under_activation_checkpointing(reentrant):
    x = torch.ones(1000, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(dropout_reference, x, 0.5, use_reentrant=reentrant)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_reference_follows_the_seed_and_is_scripted_and_compiled():
    x = torch.ones(1000)
    script = torch.jit.script(dropout_reference)
    compiled = torch.compile(dropout_reference, fullgraph=True, backend="aot_eager")
    for op in (dropout_reference, script, compiled):
        torch.manual_seed(0)
        first = op(x, 0.5)
        torch.manual_seed(0)
        assert torch.equal(op(x, 0.5), first)
        assert 400 < first.count_nonzero() < 600
        assert not torch.equal(op(x, 0.5), first)
