"""What the plugin mends of fairseq: one list, each entry shown at work, and nothing else of numpy is missing."""

from __future__ import annotations

import ast
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import Dictionary, LanguagePairDataset, TokenBlockDataset, data_utils
from fairseq.data.fasta_dataset import FastaDataset
from fairseq.modules import DynamicCRF
from fairseq.scoring import build_scorer
from fairseq.trainer import Trainer
from macaron.user_dir import patches

SENTENCES = [torch.arange(4, 4 + length) for length in (3, 5, 5, 8, 9, 12)]
SIZES = np.array([len(sentence) for sentence in SENTENCES])


def words(count: int) -> Dictionary:
    made = Dictionary()
    for number in range(count):
        made.add_symbol(f"word{number}")
    return made


def test_every_entry_says_what_why_and_until_when() -> None:
    for patch in patches.PATCHES:
        assert all(len(text) > 20 for text in (patch.what, patch.why, patch.retired_by))


def test_again_changes_nothing() -> None:
    """The folder may be imported under two names."""
    patches.install()
    patches.install()
    once = utils.load_align_dict
    assert inspect.unwrap(once) is once.__wrapped__ and not hasattr(once.__wrapped__, "__wrapped__")


def test_numpy_itself_is_left_alone() -> None:
    before = dict(vars(np))
    patches.install()
    assert dict(vars(np)) == before and not isinstance(np, patches.OldNumpy)
    assert data_utils.np.ndarray is np.ndarray and data_utils.np.random is np.random


def test_no_other_name_of_numpy_is_missing() -> None:
    """Whatever fairseq's loaded modules ask numpy for, in any function: the text path, and what it imports."""
    asked = 0
    missing = []
    for name, module in sorted(sys.modules.items()):
        if not name.startswith(("fairseq.", "fairseq_cli.")) or name.startswith("fairseq.examples"):
            continue
        numpy = getattr(module, "np", None)
        if numpy is None:
            continue
        if (source := Path(module.__file__)).suffix != ".py":  # compiled: data_utils_fast, once it is imported
            continue
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
                asked += 1
                if not hasattr(numpy, node.attr):
                    missing.append(f"{name}:{node.lineno} np.{node.attr}")
    assert missing == [] and asked > 100


@pytest.mark.parametrize("number", [1, 2, 3, 50])
def test_buckets(number: int) -> None:
    expected = np.unique(np.percentile(SIZES, np.linspace(0, 100, number + 1), method="lower")[1:])
    assert np.array_equal(data_utils.get_buckets(SIZES, number), expected)


def test_bucketed_sentence_pairs() -> None:
    data = LanguagePairDataset(SENTENCES, SIZES, words(20), SENTENCES, SIZES, words(20), num_buckets=2)
    assert {len(data[index]["source"]) for index in range(len(data))} == {5, 12}
    assert list(data.bucketed_num_tokens) == [5, 5, 5, 12, 12, 12]


def test_blocks_of_one_sentence() -> None:
    blocks = TokenBlockDataset(SENTENCES, SIZES, block_size=None, pad=1, eos=2, break_mode="eos")
    assert [block.tolist() for block in blocks] == [sentence.tolist() for sentence in SENTENCES]


def test_conditional_random_field() -> None:
    """The loss of --arch nacrf_transformer: with a beam of all words, log p(y | x) among all sequences y."""
    words, length = 5, 3
    field = DynamicCRF(num_embedding=words, low_rank=4, beam_size=words).double()
    emissions, targets = torch.randn(2, length, words).double(), torch.randint(words, (2, length))
    follows = field.E1.weight @ field.E2.weight.t()

    def score(emission: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
        said = sum(emission[t, sequences[..., t]] for t in range(length))
        return said + sum(follows[sequences[..., t - 1], sequences[..., t]] for t in range(1, length))

    every = torch.cartesian_prod(*[torch.arange(words)] * length)  # (125, 3)
    expected = [score(e, y) - score(e, every).logsumexp(0) for e, y in zip(emissions, targets, strict=True)]
    found = field(emissions, targets, torch.ones(2, length, dtype=torch.bool))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)  # its sums are float32


def test_chrf_is_a_number() -> None:
    scorer = build_scorer("chrf", None)
    scorer.add_string("a green house", "a green house")
    assert scorer.score() == pytest.approx(100)
    assert scorer.result_string().startswith("chrF2 = 100.00")


def test_replacing_unknown_words(tmp_path: Path) -> None:
    """Without a dictionary, with one, and not at all; a missing file is still an error."""
    path = tmp_path / "dictionary"
    path.write_text("Haus house\n", encoding="utf-8")
    assert utils.load_align_dict("@@ ") == utils.load_align_dict(True) == {}
    assert utils.load_align_dict(str(path)) == {"Haus": "house"}
    assert utils.load_align_dict(None) is None
    with pytest.raises(FileNotFoundError):
        utils.load_align_dict(str(tmp_path / "none"))


def test_options_through_the_command_line(trained, tiny_data_bin, fairseq_cli, plugin, train, whole, tmp_path) -> None:
    """Buckets in training, and the option whose value is left out."""
    training = train(tiny_data_bin, *whole, "--max-tokens", 100, "--num-batch-buckets", 3)
    assert "bucketing source lengths" in training.output and len(training.updates) == 4
    model = ("--path", trained.checkpoint, "--user-dir", plugin, "--beam", 1, "--max-len-b", 10, "--cpu")
    done = fairseq_cli(
        "fairseq-interactive", tiny_data_bin, *model, "--replace-unk", cwd=tmp_path, stdin="never seen\n"
    )
    assert "\nH-0\t" in done.stdout


def test_a_fasta_file_of_any_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # where tqdm's command is
    name = "valid.x;touch WITNESS;$(touch WITNESS) '-en"
    Path(f"{name}.fasta").write_text(">first\nACGT\n>second\nAC\n")
    data = FastaDataset(name)
    assert [data[i][1] for i in range(2)] == ["ACGT", "AC"] and list(data.sizes) == [4, 2]
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.fasta"]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As much of fairseq-train as is mended."""
    train = ModuleType("fairseq_cli.train")
    train.should_stop_early = lambda cfg, loss: False
    train.get_valid_stats = lambda cfg, trainer, stats, tracking_best: stats
    monkeypatch.setitem(sys.modules, "fairseq_cli.train", train)
    return train


def test_bleu_of_translations_that_are_empty_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    train = stand_in(monkeypatch)
    patches.score_empty_translations()
    patches.score_empty_translations()

    def stats(metric: str, **known: float) -> dict[str, float]:
        cfg = SimpleNamespace(
            checkpoint=SimpleNamespace(best_checkpoint_metric=metric), task=SimpleNamespace(eval_bleu=metric == "bleu")
        )
        return train.get_valid_stats(cfg, None, known, True)

    assert stats("bleu") == {"bleu": 0.0}
    assert stats("bleu", bleu=7.5) == {"bleu": 7.5}
    assert stats("loss", loss=2.0) == {"loss": 2.0}


def test_patience_is_kept_in_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there was a validation nothing is added; options that begin anew begin to count anew."""
    train, saved = stand_in(monkeypatch), []
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda self, filename, extra_state: saved.append(extra_state))
    monkeypatch.setattr(checkpoint_utils, "load_checkpoint", lambda cfg, trainer, **options: (saved[-1], "iterator"))
    patches.keep_patience()
    patches.keep_patience()
    trainer = Trainer.__new__(Trainer)
    trainer.save_checkpoint("name", {"epoch": 1})
    train.should_stop_early.best, train.should_stop_early.num_runs = 3.5, 2
    trainer.save_checkpoint("name", {"epoch": 1})
    assert saved == [{"epoch": 1}, {"epoch": 1, "patience": {"best": 3.5, "num_runs": 2}}]

    for anew in (True, False):
        train.should_stop_early.best, train.should_stop_early.num_runs = None, 0
        cfg = SimpleNamespace(reset_meters=anew, reset_optimizer=False)
        assert checkpoint_utils.load_checkpoint(cfg, trainer) == (saved[-1], "iterator")
        assert train.should_stop_early.best == (None if anew else 3.5)
    assert train.should_stop_early.num_runs == 2
