"""Released models and checkpoints as folders of transformers: equal logits, equal tokens, equal text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from macaron.user_dir.models.macaron import MacaronModel as FairseqModel
from macaron.user_dir.portable import describe
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from macaron import cli
from macaron.hf.loading import listed
from macaron.seq2seq import MacaronForConditionalGeneration, MacaronTokenizer
from macaron.seq2seq.conversion import CLOSE, check_equal, config_of, convert

APART = {"joined_dictionary": False}
RELEASES: dict[str, dict[str, Any]] = {
    "strang": {"share_all_embeddings": False, "search": {"lenpen": 0.6, "unkpen": 0.5}},
    "post-norm, sentencepiece, two dictionaries": {
        **{"splitting": "lie", "encoder_normalize_before": False, "decoder_normalize_before": False},
        "text": {"subword": "sentencepiece", "tokenizer": "none", "units": 120, **APART},
        "search": {"beam": 1},
    },
    "multistep, learned positions, two widths": {
        **{"depth_rule": "multistep", "encoder_learned_pos": True, "decoder_learned_pos": True, "decoder_layers": 3},
        **{"decoder_embed_dim": 16, "share_decoder_input_output_embed": True},
        "text": APART,
        "search": {"lenpen": 1.4, "min_len": 4, "no_repeat_ngram_size": 2},
    },
    "learned solver, dt, norms": {
        **{"solver": "heun_learned", "dt": 0.5, "layernorm_embedding": True, "no_scale_embedding": True},
        **{"no_decoder_final_norm": True, "activation_fn": "gelu_accurate", "decoder_layerdrop": 0.2},
        "text": {"lowercase": True, "aggressive_hyphens": True},
        "search": {"unnormalized": True},
    },
    "learned rule, another splitting, no positions": {
        **{"splitting": "attention/2 ffn attention/2", "depth_rule": "rk2_learned"},
        **{"no_token_positional_embeddings": True, "stochastic_depth": 0.3, "stochastic_depth_form": "unscaled"},
        "text": APART,
    },
    "an architecture of the original": {
        **{"arch": "transformer_iwslt_de_en_macaron", "encoder_ffn_embed_dim": 48, "decoder_ffn_embed_dim": 24},
        **{"encoder_layers": 1, "decoder_layers": 1, "decoder_output_dim": 20},
        "text": APART,
    },
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")


@pytest.mark.parametrize("name", RELEASES)
def test_logits_tokens_and_text_are_fairseqs(name, make_release, texts, tmp_path):
    release = make_release(**RELEASES[name])
    found = describe(release)
    model, _ = convert(found, tmp_path / "out")
    assert check_equal(model, found) <= CLOSE
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    assert check_equal(model, found) <= CLOSE
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert isinstance(model, MacaronForConditionalGeneration) and isinstance(tokenizer, MacaronTokenizer)

    hub = FairseqModel.from_pretrained(str(release))
    for line in [*texts, "</s> <pad> ’ein’ 東京\u2003x"]:
        assert tokenizer(line)["input_ids"] == hub.encode(line).tolist()
    given = tokenizer(texts, padding=True, return_tensors="pt")
    ours = model.generate(**given, return_dict_in_generate=True, output_scores=True)
    sentences = [hub.encode(line) for line in texts]
    theirs = hub.generate(sentences, **hub.generation)
    for i, hypotheses in enumerate(theirs):
        tokens = hypotheses[0]["tokens"].tolist()
        assert ours.sequences[i, 1 : len(tokens) + 1].tolist() == tokens, texts[i]
        assert set(ours.sequences[i, len(tokens) + 1 :].tolist()) <= {1}
        if hasattr(ours, "sequences_scores") and ours.sequences_scores is not None:
            torch.testing.assert_close(
                ours.sequences_scores[i].item(), float(hypotheses[0]["score"]), rtol=0, atol=1e-4
            )
    assert tokenizer.batch_decode(ours.sequences, skip_special_tokens=True) == hub.translate(texts)
    lengths = {len(hypotheses[0]["tokens"]) for hypotheses in theirs}
    assert not name.startswith("learned rule") or len(lengths) > 1, (
        "a search whose hypotheses all are cut off shows little"
    )


def test_a_checkpoint_with_its_dictionaries(make_release, tmp_path, capsys):
    """Not released: it does not say how text becomes pieces."""
    release = make_release(text=APART)
    data = tmp_path / "data"
    data.mkdir()
    for language in ("de", "en"):
        shutil.copy(release / f"dict.{language}.txt", data)
    shutil.copy(release / "model.pt", tmp_path / "checkpoint_best.pt")
    command = ["convert", str(tmp_path / "checkpoint_best.pt"), "--to", "transformers", "--data", str(data)]
    assert cli.main([*command, "--output", str(tmp_path / "plain")]) == 0
    told = capsys.readouterr().out
    assert "converted" in told and "note: a checkpoint does not say how text becomes pieces" in told
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    whole = describe(release)
    pieces = whole.symbols[0][4:9]
    assert tokenizer(" ".join(pieces))["input_ids"] == [4, 5, 6, 7, 8, 2]
    assert tokenizer.decode([2, 4, 5, 3, 2], skip_special_tokens=True) == " ".join([*whole.symbols[1][4:6], "<unk>"])
    codes = ["--bpe-codes", str(release / "bpecodes")]
    assert cli.main([*command, *codes, "--output", str(tmp_path / "codes")]) == 0
    assert "note: words are split at spaces" in capsys.readouterr().out
    words = "Der Hund läuft"
    assert AutoTokenizer.from_pretrained(tmp_path / "codes")(words) == AutoTokenizer.from_pretrained(
        _converted(release, tmp_path / "release")
    )(words)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "plain").eval()
    assert check_equal(model, whole) <= CLOSE


def test_the_originals_models_give_their_own_numbers(golden, tmp_path):
    """Converted straight from checkpoints of the original, against the logits that it computed itself."""
    checkpoints = sorted(golden.glob("translation/*/checkpoint.pt"))
    assert checkpoints, "the folder of golden models has none of translation"
    for path in checkpoints:
        data = golden / "data" / json.loads((path.parent / "meta.json").read_text())["data"]
        model, _ = convert(describe(path, data), tmp_path / path.parent.name)
        batch, outputs = (load_file(path.parent / f"{name}.safetensors") for name in ("batch", "outputs"))
        source, real = batch["src_tokens"], batch["target"].ne(1)
        with torch.no_grad():
            logits = model(source, source.ne(1).long(), decoder_input_ids=batch["prev_output_tokens"]).logits
        torch.testing.assert_close(logits[real], outputs["decoder_logits"][real], rtol=0, atol=2e-5)
        reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / path.parent.name)
        assert all(torch.equal(t, reloaded.state_dict()[name]) for name, t in model.state_dict().items())


def _converted(release: Path, out: Path) -> Path:
    convert(describe(release), out)
    return out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    def run(*arguments: object) -> str:
        assert cli.main(["convert", *map(str, arguments)]) == 1
        return capsys.readouterr().err

    return run


def test_what_cannot_be_converted(make_release, refused, tmp_path):
    out = tmp_path / "out"
    to = ("--to", "transformers", "--output", out)
    release = make_release()
    out.mkdir()
    (out / "mine.txt").write_text("x")
    assert "is not empty; name another one, or add --force" in refused(release, *to)
    shutil.rmtree(out)
    assert "does not exist" in refused(tmp_path / "nothing", *to)
    (tmp_path / "empty").mkdir()
    assert "is no released model, as there is no text.json in it; the folder is empty" in refused(
        tmp_path / "empty", *to
    )
    assert "leave out --data" in refused(release, *to, "--data", release)
    assert "which stays as it is" in refused(release, "--to", "transformers", "--output", release, "--force")
    assert "--revision main" in refused(release, *to, "--revision", "main")
    assert "goes with --to transformers" in refused(release, "--output", out, "--data", release)

    def damaged(name: str, change: Any) -> Path:
        copy = tmp_path / name
        shutil.copytree(release, copy)
        change(copy)
        return copy

    gone = damaged("gone", lambda folder: (folder / "dict.en.txt").unlink())
    assert "dict.en.txt missing" in refused(gone, *to)
    newer = damaged("newer", lambda folder: _edit(folder / "text.json", format=9))
    assert "is of format 9, and this version of macaron reads 1 to 3" in refused(newer, *to)
    cut = damaged("cut", lambda folder: (folder / "model.pt").write_bytes((folder / "model.pt").read_bytes()[:5000]))
    assert "model.pt is not what was released" in refused(cut, *to)
    bare = damaged("bare", lambda folder: (folder / "text.json").unlink())
    (bare / "SHA256SUMS").unlink()
    told = refused(bare / "model.pt", *to, "--data", tmp_path / "empty")
    assert "no dictionary (dict.*.txt) there" in told and "as --data (now" in told and "data_name_or_path" not in told
    words = (bare / "dict.en.txt").read_text(encoding="utf-8")
    for content, message in (
        (words.encode()[:-3], "one of its dictionaries is damaged (Incorrect dictionary format"),
        (words.splitlines()[0].encode() + b"\n" + words.encode(), "is damaged (Duplicate word found"),
        (b"\xef\xbb\xbf" + words.encode(), "a dictionary begins with a byte order mark"),
    ):
        for language in ("de", "en"):
            (bare / f"dict.{language}.txt").write_bytes(content)
        assert message in refused(bare / "model.pt", *to, "--data", bare)
    shutil.copy(release / "dict.de.txt", bare)
    (bare / "dict.en.txt").unlink()
    told = refused(bare / "model.pt", *to, "--data", bare)
    assert "Give the folder with the dictionaries that the checkpoint was trained with as --data\n" in told
    shutil.copy(release / "dict.en.txt", bare)
    _edit_options(bare / "model.pt", cross_self_attention=True)
    assert "--cross-self-attention True, for which there is no counterpart" in refused(bare / "model.pt", *to)
    state = torch.load(bare / "model.pt", weights_only=True)
    state["model"] = {name: t for name, t in state["model"].items() if name.startswith("decoder.")}
    torch.save(state, bare / "model.pt")
    assert "is the checkpoint of a language model" in refused(bare / "model.pt", *to)
    assert not out.exists()


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _edit_options(path: Path, **changes: Any) -> None:
    state = torch.load(path, weights_only=True)
    state["cfg"]["model"].update(changes)
    torch.save(state, path)


def test_a_model_that_computes_something_else_is_not_written(make_release, tmp_path):
    found = describe(make_release())
    other = found._replace(options={**found.options, "dt": 0.75})
    with pytest.raises(ValueError, match="logits differ from fairseq's by"):
        convert(other, tmp_path / "out")
    less = {name: t for name, t in found.tensors.items() if name != "encoder.layers.0.flows.0.fc1.bias"}
    with pytest.raises(ValueError, match=r"model\.encoder\.layers\.0\.flows\.0\.fc1\.bias is missing"):
        convert(found._replace(tensors=less), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert listed([]) == ""
    for name, value in (
        *(("adaptive_softmax_cutoff", "100,200"), ("adaptive_input", True), ("no_cross_attention", True)),
        *(("quant_noise_pq", 0.1), ("quant_noise_scalar", 0.5), ("base_layers", 1), ("char_inputs", True)),
    ):
        told = f"was trained with --{name.replace('_', '-')} {value}, for which there is no counterpart"
        with pytest.raises(ValueError, match=told):
            config_of(found._replace(options={**found.options, name: value}))


def test_the_recipes_search_becomes_generates(make_release, tmp_path, capsys):
    search = {"beam": 5, "lenpen": 0.6, "max_len_a": 1.2, "max_len_b": 10, "diversity_rate": 0.5}
    release = make_release(search=search)
    command = ["convert", str(release), "--to", "transformers", "--output", str(tmp_path / "out")]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "has one bound, max_length=65" in told  # 64 tokens are the most that the decoder takes
    assert "generate() has no counterpart to diversity_rate" in told
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.num_beams, settings.length_penalty, settings.early_stopping) == (5, 0.6, True)
    assert settings.min_length == 2 and settings.forced_eos_token_id == 2 and settings.decoder_start_token_id == 2
    assert cli.main([*command, "--force"]) == 0
