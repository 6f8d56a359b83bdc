"""Translation from preprocessing to scoring, through fairseq's own commands."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils


@pytest.fixture(scope="module")
def averaged(trained, fairseq_cli, tmp_path_factory) -> Path:
    """The mean of the checkpoints after two and after four updates."""
    output = tmp_path_factory.mktemp("averaged") / "average.pt"
    inputs = [trained.folder / "checkpoint_1_2.pt", trained.checkpoint]
    fairseq_cli("macaron", "average", "--inputs", *inputs, "--output", output, cwd=output.parent)
    return output


@pytest.fixture(scope="module")
def translate(fairseq_cli, plugin, tiny_data_bin, whole):
    """What fairseq-generate finds for the test set; by default of `tiny_data_bin`."""

    def run(checkpoint: Path, *flags: object, data: Path = tiny_data_bin) -> str:
        arguments = [data, "--user-dir", plugin, "--path", checkpoint, "--cpu", "--max-len-b", 12, *flags]
        results = tempfile.mkdtemp(dir=checkpoint.parent)
        fairseq_cli("fairseq-generate", *arguments, *whole, "--results-path", results, cwd=checkpoint.parent)
        return Path(results, "generate-test.txt").read_text(encoding="utf-8")

    return run


def lines(output: str, kind: str) -> dict[int, list[list[str]]]:
    """What generate printed as `kind`-<sentence>: the tab-separated fields of each line, by sentence."""
    found: dict[int, list[list[str]]] = {}
    for number, rest in re.findall(rf"^{kind}-(\d+)\t(.*)$", output, re.MULTILINE):
        found.setdefault(int(number), []).append(rest.split("\t"))
    assert sorted(found) == list(range(12)), f"not all of the twelve sentences have a line {kind}"
    return found


BEAM = ["--beam", 3, "--nbest", 2, "--lenpen", 0.6, "--print-alignment", "--prefix-size", 1]


@pytest.fixture(scope="module")
def generated(averaged, translate) -> str:
    return translate(averaged, *BEAM)


def test_training_learns_and_validates(trained):
    assert [entry["num_updates"] for entry in trained.updates] == ["1", "2", "3", "4"]
    assert float(trained.updates[-1]["loss"]) < float(trained.updates[0]["loss"])
    assert "valid_bleu" in trained.valid[-1]


def test_resuming_equals_training_without_a_break(trained, train, tiny_data_bin, batches):
    resumed = train(tiny_data_bin, *batches, "--restore-file", trained.folder / "checkpoint_1_2.pt")
    assert resumed.losses == trained.losses[2:]
    for name, tensor in trained.weights.items():
        torch.testing.assert_close(resumed.weights[name], tensor, rtol=0, atol=0)  # to the bit


def test_checkpoint_activations_changes_no_loss(trained, train, tiny_data_bin, batches):
    checkpointed = train(tiny_data_bin, *batches, "--checkpoint-activations", "--disable-validation")
    assert checkpointed.losses == trained.losses


def test_the_average_is_the_mean_of_its_checkpoints(trained, averaged):
    first, last, mean = (
        torch.load(path, weights_only=True)["model"]
        for path in (trained.folder / "checkpoint_1_2.pt", trained.checkpoint, averaged)
    )
    name = "encoder.layers.0.flows.0.fc1.weight"
    assert not torch.equal(first[name], last[name])
    torch.testing.assert_close(mean[name], (first[name] + last[name]) / 2)


def test_generate_prints_the_n_best(generated):
    hypotheses = lines(generated, "H")
    assert sorted(hypotheses) == list(range(12))
    for candidates in hypotheses.values():
        scores = [float(score) for score, _ in candidates]
        assert len(scores) == 2 and scores == sorted(scores, reverse=True)


def test_generate_divides_scores_by_the_length_penalty(generated):
    hypotheses, positional = lines(generated, "H"), lines(generated, "P")
    for sentence, candidates in hypotheses.items():
        for (score, _), (per_token,) in zip(candidates, positional[sentence], strict=True):
            per_token = [float(value) for value in per_token.split()]
            # four digits of each, n/2 units of the last over n^0.6, n ≤ 13
            assert float(score) == pytest.approx(sum(per_token) / len(per_token) ** 0.6, abs=2e-4)


def test_generate_keeps_the_prefix(generated):
    references, hypotheses = lines(generated, "T"), lines(generated, "H")
    for sentence, candidates in hypotheses.items():
        first = references[sentence][0][0].split()[0]
        assert all(text.split()[0] == first for _, text in candidates)


def test_generate_prints_an_alignment_of_real_tokens(generated):
    sources, hypotheses = lines(generated, "S"), lines(generated, "H")
    for sentence, candidates in lines(generated, "A").items():
        source_length = len(sources[sentence][0][0].split())
        for (pairs,), (_, text) in zip(candidates, hypotheses[sentence], strict=True):
            aligned = [tuple(map(int, pair.split("-"))) for pair in pairs.split()]
            assert len(aligned) == len(text.split())
            assert all(0 <= source < source_length for source, _ in aligned)


def test_interactive_translates_like_generate(averaged, translate, fairseq_cli, plugin, tiny_corpus, dictionary_folder):
    plain = lines(translate(averaged, "--beam", 3), "D")
    arguments = [dictionary_folder, "--user-dir", plugin, "--path", averaged, "--cpu", "--max-len-b", 12]
    done = fairseq_cli(
        "fairseq-interactive",
        *arguments,
        *["--source-lang", "de", "--target-lang", "en", "--beam", 3, "--buffer-size", 12, "--batch-size", 6],
        cwd=averaged.parent,
        stdin=(tiny_corpus / "test.de").read_text(encoding="utf-8"),
        env={"PYTHONUNBUFFERED": "1"},  # logs and results come in one stream: no line is to be cut by another
    )
    spoken = lines(done.stdout, "D")
    assert {n: found[0][1] for n, found in spoken.items()} == {n: found[0][1] for n, found in plain.items()}


def test_validate_finds_the_loss_of_training(trained, fairseq_cli, plugin, tiny_data_bin, batches):
    arguments = [tiny_data_bin, "--user-dir", plugin, "--path", trained.checkpoint, "--cpu"]
    arguments += ["--task", "translation", *batches, "--log-format", "json"]
    done = fairseq_cli("fairseq-validate", *arguments, cwd=trained.folder)
    assert f'"valid_loss": "{trained.valid[-1]["valid_loss"]}"' in done.stdout


def test_score_finds_the_bleu_of_generate(generated, fairseq_cli, tmp_path):
    best = {sentence: candidates[0][1] for sentence, candidates in lines(generated, "D").items()}
    references = {sentence: candidates[0][0] for sentence, candidates in lines(generated, "T").items()}
    (tmp_path / "hypotheses").write_text("".join(f"{best[i]}\n" for i in sorted(best)), encoding="utf-8")
    (tmp_path / "references").write_text("".join(f"{references[i]}\n" for i in sorted(best)), encoding="utf-8")
    scored = fairseq_cli("fairseq-score", "--sys", "hypotheses", "--ref", "references", cwd=tmp_path).stdout
    bleu = re.search(r"BLEU4 = .*", generated)
    assert bleu and bleu[0] in scored


def test_a_model_trained_with_layerdrop_is_pruned_on_loading(train, translate, tiny_data_bin, batches):
    trained = train(
        tiny_data_bin,
        *[*batches, "--disable-validation", "--encoder-layers", 3, "--decoder-layers", 3],
        *["--encoder-layerdrop", 0.4, "--decoder-layerdrop", 0.4],
    )
    overrides = {"encoder_layers_to_keep": "0,2", "decoder_layers_to_keep": "1"}
    output = translate(trained.checkpoint, "--beam", 2, "--model-overrides", str(overrides))
    assert len(lines(output, "H")) == 12

    (pruned,), _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(trained.checkpoint)], arg_overrides={**overrides, "data": str(tiny_data_bin)}
    )
    assert (len(pruned.encoder.layers), len(pruned.decoder.layers)) == (2, 1)
    for here, there in (("encoder.layers.1", "encoder.layers.2"), ("decoder.layers.0", "decoder.layers.1")):
        weight = pruned.get_parameter(f"{here}.flows.0.fc1.weight")
        torch.testing.assert_close(weight.data, trained.weights[f"{there}.flows.0.fc1.weight"])


def test_shared_embeddings_and_learned_positions(train, translate, tiny_data_bin, batches):
    trained = train(
        tiny_data_bin,
        *[*batches, "--disable-validation", "--share-all-embeddings"],
        *["--encoder-learned-pos", "--decoder-learned-pos"],
    )
    weights = trained.weights
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        torch.testing.assert_close(weights[name], weights["encoder.embed_tokens.weight"], rtol=0, atol=0)  # copies
    assert weights["decoder.embed_positions.weight"].size(1) == 64
    assert len(lines(translate(trained.checkpoint, "--beam", 2), "H")) == 12


def test_adaptive_softmax(train, translate, tiny_data_bin, batches):
    trained = train(
        tiny_data_bin,
        *[*batches, "--disable-validation", "--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp"],
        *["--adaptive-softmax-cutoff", "10,20", "--adaptive-softmax-dropout", 0],
    )
    assert float(trained.updates[-1]["loss"]) < float(trained.updates[0]["loss"])
    assert not any("output_projection" in name for name in trained.weights)
    assert len(lines(translate(trained.checkpoint, "--beam", 2), "H")) == 12


def test_separate_dictionaries(fairseq_cli, train, translate, tiny_corpus, tmp_path, batches):
    data = tmp_path / "separate"
    arguments = ["--source-lang", "de", "--target-lang", "en", "--destdir", data]
    prefixes = [f"--{split}pref={split}" for split in ("train", "valid", "test")]
    fairseq_cli("fairseq-preprocess", *arguments, *prefixes, "--nwordstgt", 25, cwd=tiny_corpus)
    trained = train(data, *batches, "--disable-validation", "--share-decoder-input-output-embed")
    source, target = (trained.weights[f"{side}.embed_tokens.weight"] for side in ("encoder", "decoder"))
    assert source.size(0) != target.size(0)
    assert len(lines(translate(trained.checkpoint, "--beam", 2, data=data), "H")) == 12


@pytest.fixture(scope="module")
def aligned_data(fairseq_cli, tiny_corpus, tmp_path_factory) -> Path:
    """`tiny_corpus` with the alignment of its words, whose order is reversed."""
    folder = tmp_path_factory.mktemp("aligned")
    arguments = ["--source-lang", "de", "--target-lang", "en", "--joined-dictionary", "--destdir", folder / "data"]
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            text = (tiny_corpus / f"{split}.{language}").read_text(encoding="utf-8")
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
        lengths = [len(line.split()) for line in text.splitlines()]
        pairs = [" ".join(f"{i}-{length - 1 - i}" for i in range(length)) for length in lengths]
        (folder / f"{split}.align").write_text("\n".join(pairs) + "\n", encoding="utf-8")
        arguments += [f"--{split}pref", split]
    fairseq_cli("fairseq-preprocess", *arguments, "--align-suffix", "align", cwd=folder)
    return folder / "data"


@pytest.mark.parametrize("splitting", ["strang", "lie"])
def test_guided_alignment(splitting, aligned_data, train, translate, batches):
    criterion = ["--criterion", "label_smoothed_cross_entropy_with_alignment", "--alignment-lambda", 1]
    trained = train(aligned_data, *batches, *criterion, "--load-alignments", "--splitting", splitting)
    losses = [float(entry["alignment_loss"]) for entry in trained.updates]
    assert losses[-1] < losses[0] and float(trained.valid[-1]["valid_alignment_loss"]) > 0
    output = translate(trained.checkpoint, "--beam", 2, "--print-alignment", "--load-alignments", data=aligned_data)
    pairs = lines(output, "A")
    assert len(pairs) == 12 and all(found[0][0] for found in pairs.values())


SIDES = ("encoder", "decoder")


def test_fine_tuning_a_pruned_model(trained, train, translate, fairseq_cli, plugin, tiny_data_bin, batches, tmp_path):
    """Its checkpoints hold fewer layers and say so: they are resumed, validated, averaged and generated from."""
    tune = [*batches, "--encoder-layers-to-keep", "1", "--save-interval-updates", 2]
    tuned = train(tiny_data_bin, *tune, "--finetune-from-model", trained.checkpoint)
    layers = [{name.split(".")[2] for name in tuned.weights if name.startswith(f"{side}.layers.")} for side in SIDES]
    assert layers == [{"0"}, {"0", "1"}]
    model = torch.load(tuned.checkpoint, weights_only=True)["cfg"]["model"]
    assert (model["encoder_layers"], model["encoder_layers_to_keep"]) == (1, None)

    shutil.copy(tuned.folder / "checkpoint_1_2.pt", tuned.checkpoint)
    resumed = train(tiny_data_bin, *tune, save_dir=tuned.folder)  # the same command goes on, and does not prune again
    assert resumed.losses == tuned.losses[2:]

    average = tmp_path / "average.pt"
    inputs = [tuned.folder / "checkpoint_1_2.pt", tuned.checkpoint]
    fairseq_cli("macaron", "average", "--inputs", *inputs, "--output", average, cwd=tmp_path)
    assert len(lines(translate(average, "--beam", 2), "H")) == 12
    arguments = [tiny_data_bin, "--user-dir", plugin, "--path", tuned.checkpoint, "--cpu", "--task", "translation"]
    done = fairseq_cli("fairseq-validate", *arguments, *batches, "--log-format", "json", cwd=tmp_path)
    assert f'"valid_loss": "{resumed.valid[-1]["valid_loss"]}"' in done.stdout
