"""Language modelling through fairseq's own commands."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from macaron.user_dir.models import MacaronLanguageModel

from macaron import MacaronModel

PRINTED = 1e-3  # eval-lm prints four digits after the point, the log of a training three
BLOCKS = ["--task", "language_modeling", "--sample-break-mode", "none", "--tokens-per-sample", 32]


@pytest.fixture(scope="module")
def lm_data(fairseq_cli, tiny_corpus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lm") / "data-bin"
    texts = [f"--{split}pref={split}.en" for split in ("train", "valid", "test")]
    fairseq_cli("fairseq-preprocess", "--only-source", *texts, "--destdir", folder, cwd=tiny_corpus)
    return folder


def encoded(data: Path, corpus: Path) -> list[list[int]]:
    """The sentences of the validation set, with their ends."""
    dictionary = Dictionary.load(str(data / "dict.txt"))
    lines = (corpus / "valid.en").read_text(encoding="utf-8").splitlines()
    return [dictionary.encode_line(line, add_if_not_exist=False).tolist() for line in lines]


@pytest.fixture(scope="module")
def trained_lm(train, lm_data, whole):
    return train(lm_data, *BLOCKS, *whole, "--batch-size", 4, arch="macaron_lm_tiny")


@pytest.fixture(scope="module")
def eval_lm(fairseq_cli, plugin, lm_data, whole):
    """The loss in bits that fairseq-eval-lm finds."""

    def run(checkpoint: Path, *flags: object) -> float:
        arguments = [lm_data, "--user-dir", plugin, "--path", checkpoint, "--cpu", "--batch-size", 4, *whole, *flags]
        done = fairseq_cli("fairseq-eval-lm", *arguments, cwd=checkpoint.parent)
        found = re.search(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)", done.stdout)
        assert found, done.stdout
        assert float(found[2]) == pytest.approx(2 ** float(found[1]), abs=0.01)  # two digits are printed
        return float(found[1])

    return run


def test_training_learns(trained_lm):
    assert float(trained_lm.updates[-1]["loss"]) < float(trained_lm.updates[0]["loss"])


def test_eval_lm_finds_the_loss_of_training(trained_lm, eval_lm):
    found = eval_lm(trained_lm.checkpoint, *BLOCKS[2:], "--gen-subset", "valid")
    assert found == pytest.approx(float(trained_lm.valid[-1]["valid_loss"]), abs=PRINTED)


@torch.no_grad()
def bits(training: Any, data: Path, targets: list[list[int]], context_window: int = 0) -> float:
    """Per token, of a model that sees `context_window` tokens from before each of `targets`; computed one by one."""
    hub = MacaronLanguageModel.from_pretrained(training.folder, "checkpoint_last.pt", data)
    (model,), end = hub.models, hub.task.target_dictionary.eos()
    before: list[int] = []
    last, total = end, 0.0
    for target in targets:
        given = [*before, last, *target[:-1]]
        output = model(torch.tensor([given]))
        log_probs = model.get_normalized_probs(output, log_probs=True, sample={"target": None})[0][len(before) :]
        total -= log_probs.gather(1, torch.tensor(target)[:, None]).sum().item()
        before, last = given[len(given) - context_window :], target[-1]
    return total / sum(map(len, targets)) / math.log(2)


def test_eval_lm_with_more_context_and_whole_sentences(trained_lm, eval_lm, lm_data, tiny_corpus):
    blocks = ["--sample-break-mode", "eos", "--tokens-per-sample", 32]
    sentences = encoded(lm_data, tiny_corpus)
    found = eval_lm(trained_lm.checkpoint, *blocks, "--gen-subset", "valid", "--context-window", 8)
    assert found == pytest.approx(bits(trained_lm, lm_data, sentences, 8), abs=PRINTED)
    assert found != pytest.approx(bits(trained_lm, lm_data, sentences), abs=PRINTED)


def test_generate_continues_a_prefix(trained_lm, fairseq_cli, plugin, lm_data, whole, tmp_path):
    arguments = [lm_data, "--user-dir", plugin, "--path", trained_lm.checkpoint, "--cpu", "--beam", 2]
    fairseq_cli(
        "fairseq-generate",
        *[*arguments, "--task", "language_modeling", "--sample-break-mode", "eos", "--tokens-per-sample", 32],
        *["--prefix-size", 2, "--max-len-b", 12, *whole, "--results-path", tmp_path],
        cwd=lm_data,
    )
    printed = (tmp_path / "generate-test.txt").read_text(encoding="utf-8")
    texts = {kind: dict(re.findall(rf"^{kind}-(\d+)\t(.*)$", printed, re.MULTILINE)) for kind in "TH"}
    assert len(texts["H"]) == 12
    for sentence, hypothesis in texts["H"].items():
        words = hypothesis.split("\t")[1].split()
        assert words[:2] == texts["T"][sentence].split()[:2]


@pytest.fixture(scope="module")
def adaptive(train, lm_data, whole):
    """A named architecture with adaptive input and softmax, made small."""
    sizes = ["--decoder-embed-dim", 32, "--decoder-ffn-embed-dim", 32, "--decoder-layers", 2]
    cutoffs = ["--adaptive-input-cutoff", "10,20", "--adaptive-softmax-cutoff", "10,20"]
    return train(
        lm_data,
        *[*BLOCKS, *whole, "--batch-size", 4, "--criterion", "adaptive_loss", *sizes, *cutoffs],
        *["--decoder-attention-heads", 2, "--adaptive-softmax-dropout", 0, "--ddp-backend", "legacy_ddp"],
        arch="macaron_lm_wiki103",
    )


def test_adaptive_input_and_softmax(adaptive, eval_lm, lm_data, tiny_corpus):
    assert float(adaptive.updates[-1]["loss"]) < float(adaptive.updates[0]["loss"])
    found = eval_lm(adaptive.checkpoint, *BLOCKS[2:], "--gen-subset", "valid")
    # fairseq's adaptive_loss, of which the log of the training tells, leaves out the words that have the number of
    # padding within their band, here 2 of 36; nothing is left out here
    stream = [token for sentence in encoded(lm_data, tiny_corpus) for token in sentence]
    blocks = [stream[i : i + 32] for i in range(0, len(stream), 32)]
    assert found == pytest.approx(bits(adaptive, lm_data, blocks), abs=PRINTED)


def test_adaptive_tables_are_tied(adaptive):
    weights = adaptive.weights
    for band, name in enumerate(("head.word_proj", "tail.0.2", "tail.1.2")):
        table = weights[f"decoder.embed_tokens.embeddings.{band}.0.weight"]
        assert table.equal(weights[f"decoder.adaptive_softmax.{name}.weight"])


def test_the_hub_continues_and_scores_sentences(trained_lm, lm_data):
    hub = MacaronLanguageModel.from_pretrained(trained_lm.folder, "checkpoint_last.pt", lm_data)
    first, empty, last = hub.sample(["ab", "", "ba"], beam=1, max_len_b=6)
    assert [first, last] == [hub.sample(one, beam=1, max_len_b=6) for one in ("ab", "ba")] and isinstance(empty, str)
    assert len(hub.score(iter(["ab", "ba ab"]))) == 2
    with pytest.raises(ValueError, match=r"1 of 2 sentences longer than 32 tokens: number 2 has 41"):
        hub.sample(["ab", "ab " * 40])
    with pytest.raises(ValueError, match="no option 'temprature'; did you mean temperature"):
        hub.sample("ab", temprature=1.0)
    with pytest.raises(TypeError, match="sentence number 1 is of type NoneType"):
        hub.score([None])


def test_wrong_places_of_a_language_model(trained_lm, lm_data, dictionary_folder, tmp_path):
    with pytest.raises(ValueError, match=r"no dict\.txt there; it holds dict\.de\.txt"):
        MacaronLanguageModel.from_pretrained(trained_lm.folder, "checkpoint_last.pt", dictionary_folder)
    with pytest.raises(ValueError, match=r"holds a MacaronLmTiny, no MacaronModel; open it with from_pretrained of"):
        MacaronModel.from_pretrained(trained_lm.folder, "checkpoint_last.pt", lm_data)
    with pytest.raises(ValueError, match="it holds binarised data, which is for data_name_or_path"):
        MacaronLanguageModel.from_pretrained(lm_data)
