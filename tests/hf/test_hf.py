"""What is for any model of transformers: it knows none, and its losses count what has a label."""

from __future__ import annotations

import ast

import pytest
import torch
import torch.nn.functional as F

from macaron.hf.losses import IGNORED, mean_cross_entropy
from macaron.hf.positions import count_positions


def test_it_knows_no_model(project_root):
    paths = sorted((project_root / "macaron" / "hf").glob("*.py"))
    assert len(paths) > 5
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            models = ("macaron.bert", "macaron.seq2seq", "macaron.user_dir")
            assert not [name for name in names if name.startswith(models)], path


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_cross_entropy(shape, dtype):
    logits, labels = torch.randn(*shape, 5).to(dtype), torch.randint(0, 5, shape)
    labels.view(-1)[[0, 3]] = IGNORED
    chosen = labels != IGNORED
    expected = -F.log_softmax(logits.float(), -1)[chosen].gather(-1, labels[chosen].unsqueeze(-1)).sum()
    loss = mean_cross_entropy(logits, labels, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected / chosen.sum())
    torch.testing.assert_close(mean_cross_entropy(logits, labels, torch.tensor(20)), expected / 20)
    assert mean_cross_entropy(logits, torch.full(shape, IGNORED), None) == 0


def test_positions_count_real_particles_of_each_sentence():
    cpu = torch.device("cpu")
    assert count_positions(3, None, None, cpu).tolist() == [[0, 1, 2]]
    real = torch.tensor([[False, True, True], [True, True, False]])
    assert count_positions(3, real, None, cpu).tolist() == [[0, 0, 1], [0, 1, 1]]
    assert count_positions(4, None, torch.tensor([[0, 0, 1, 1]]), cpu).tolist() == [[0, 1, 0, 1]]
