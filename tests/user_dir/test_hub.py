"""`from_pretrained(…).translate`: a model in a script, without commands."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from macaron.user_dir import hub as hub_module
from macaron.user_dir import released
from macaron.user_dir.models import MacaronLanguageModel

from macaron import MacaronModel
from macaron.checkpoint import CheckpointError
from macaron.text import TextSettings


@pytest.fixture(scope="module")
def hub(trained, dictionary_folder):
    return MacaronModel.from_pretrained(
        str(trained.folder),
        checkpoint_file="checkpoint_last.pt",
        data_name_or_path=str(dictionary_folder),
        source_lang="de",
        target_lang="en",
    )


@pytest.fixture(scope="module")
def sentences(tiny_corpus) -> list[str]:
    return (tiny_corpus / "test.de").read_text(encoding="utf-8").splitlines()


def test_it_is_the_model_that_was_trained(hub, trained):
    (model,) = hub.models
    assert isinstance(model, MacaronModel)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, trained.weights[name], rtol=0, atol=0)  # copies


def test_translate_takes_one_sentence_or_many(hub, sentences):
    together = hub.translate(sentences, beam=3, max_len_b=12)
    assert together == [hub.translate(sentence, beam=3, max_len_b=12) for sentence in sentences]
    assert all(translation.split() for translation in together)


def test_a_batch_scores_like_its_sentences(hub, sentences):
    tokens = [hub.encode(sentence) for sentence in sentences]
    together = [candidates[0]["score"] for candidates in hub.generate(tokens, beam=3, max_len_b=12)]
    alone = [hub.generate(one, beam=3, max_len_b=12)[0]["score"] for one in tokens]
    torch.testing.assert_close(
        torch.stack(together), torch.stack(alone), rtol=0, atol=1e-5
    )  # padded or not, float32 rounds otherwise
    assert len(set(map(float, together))) == len(sentences)


def test_sampling(hub, sentences):
    one, other = (hub.translate(sentences[0], beam=1, sampling=True, seed=n, max_len_b=12) for n in (1, 2))
    assert one != other


def test_alignment(hub, sentences):
    source = hub.encode(sentences[0])
    best = hub.generate(source, beam=2, max_len_b=12, print_alignment="hard")[0]
    pairs = [tuple(map(int, pair)) for pair in best["alignment"]]
    assert [there for _, there in pairs] == list(range(len(best["tokens"]) - 1))
    assert [here for here, _ in pairs] == best["attention"][:-1, :-1].argmax(0).tolist()  # of real tokens, no ends


def test_fairseq_alone_opens_the_plugin(trained, dictionary_folder, plugin, fairseq_cli, hub, sentences, tmp_path):
    script = tmp_path / "translate.py"
    script.write_text(
        f"""
from fairseq.models.transformer import TransformerModel

model = TransformerModel.from_pretrained(
    {str(trained.folder)!r}, "checkpoint_last.pt", {str(dictionary_folder)!r},
    source_lang="de", target_lang="en", user_dir={str(plugin)!r},
)
print(type(model.models[0]).__name__, model.translate({sentences[0]!r}, beam=3, max_len_b=12), sep="|")
""",
        encoding="utf-8",
    )
    printed = fairseq_cli("python", script, cwd=tmp_path).stdout.splitlines()[-1]
    assert printed == f"MacaronTiny|{hub.translate(sentences[0], beam=3, max_len_b=12)}"


def test_only_a_folder_with_a_description_is_a_released_model(trained, dictionary_folder, tmp_path):
    assert not hub_module.is_release(trained.folder, ".")
    (tmp_path / hub_module.DESCRIPTION).write_text("{}", encoding="utf-8")
    assert hub_module.is_release(tmp_path, ".")
    assert not hub_module.is_release(tmp_path, str(dictionary_folder)), "asked for with other dictionaries"
    with pytest.raises(ValueError, match=r"text\.json: does not describe a released model \(KeyError: 'source'\)"):
        MacaronModel.from_pretrained(str(tmp_path))


# --- what is asked of a model -------------------------------------------------------------------------------------

LONG = "ab " * 2000


def test_a_sentence_that_is_too_long_is_named_before_anything_is_translated(hub, sentences):
    with pytest.raises(
        ValueError, match=r"1 of 4 sentences longer than 1,024 tokens: number 3 has 2,001\. .*split them"
    ):
        hub.translate(["", sentences[0], LONG, sentences[1]])
    with pytest.raises(ValueError, match=r"number 2 has 2,001\. .*skip_invalid_size_inputs=True"):
        hub.sample([sentences[0], LONG])
    with pytest.raises(ValueError, match=r"number 1 has 2,001"):
        hub.translate(LONG)


def test_one_that_is_too_long_leaves_the_others_in_their_places(hub, sentences, caplog):
    options = {"beam": 2, "max_len_b": 5, "skip_invalid_size_inputs": True}
    first, last = hub.translate([sentences[0], sentences[1]], **options)
    with caplog.at_level(logging.WARNING):
        assert hub.translate([sentences[0], LONG, "", sentences[1]], **options) == [first, "", "", last]
    assert "1 of 4 sentences longer than 1,024 tokens: number 2 has 2,001; skipped" in caplog.text
    assert hub.translate([LONG], **options) == [""] and hub.translate(LONG, **options) == ""
    assert hub.sample([sentences[0], LONG], **options) == [first, ""]
    tokens = [hub.encode(text) for text in (LONG, sentences[0])]
    assert [len(found) for found in hub.generate(tokens, **options)] == [0, 2]


def test_a_sentence_of_the_longest_length(hub):
    longest = " ".join(["ab"] * 1023)
    assert hub.encode(longest).numel() == 1024
    assert isinstance(hub.translate(longest, beam=1, max_len_b=3), str)


def test_batches_of_the_training_do_not_limit_a_sentence(trained, dictionary_folder):
    options = {"source_lang": "de", "target_lang": "en", "max_tokens": 20}
    small = MacaronModel.from_pretrained(trained.folder, "checkpoint_last.pt", dictionary_folder, **options)
    assert len(small.translate(["ab", "ab " * 100], beam=1, max_len_b=3)) == 2


def test_any_number_of_sentences_in_order(hub, sentences):
    options = {"beam": 1, "max_len_b": 5}
    expected = hub.translate(sentences[:3], **options)
    assert hub.translate(iter(sentences[:3]), **options) == expected
    assert hub.translate((text for text in sentences[:3]), **options) == expected
    assert hub.translate(tuple(sentences[:3]), **options) == expected
    assert hub.translate(dict.fromkeys(sentences[:3]).keys(), **options) == expected
    assert hub.translate([], **options) == hub.translate(iter(()), **options) == []


@pytest.mark.parametrize("value", [None, b"ab", bytearray(b"ab"), 5, 1.5, {"ab": 1}, {"ab"}, object()])
def test_what_is_no_text(hub, value):
    with pytest.raises(TypeError, match=rf"takes a sentence \(str\), or sentences in order.*{type(value).__name__}"):
        hub.translate(value)


@pytest.mark.parametrize("value", [None, b"ab", 5, ["ab"]])
def test_what_is_no_text_in_a_list(hub, value):
    with pytest.raises(TypeError, match=rf"sentence number 2 is of type {type(value).__name__}"):
        hub.translate(["ab", value])


def test_text_that_cannot_be_written(hub):
    with pytest.raises(ValueError, match="sentence number 2 is no valid Unicode"):
        hub.translate(["ab", "\ud800"])


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t", "\u200b", "\u00ad", "\ufeff", "\x00\x01", "\u2060 \u200d", "\u3164", "\x85"]
)
def test_nothing_to_be_seen_stays_nothing(hub, sentences, text):
    assert hub.translate(text) == ""
    assert hub.translate([text, sentences[0]], beam=1, max_len_b=4)[0] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beem": 3}, r"no option 'beem'; did you mean beam\? There are beam, .*lenpen, "),
        ({"num_beams": 3}, r"no option 'num_beams'.* There are beam, "),
        ({"lenpn": 1.0}, r"did you mean lenpen\?"),
        ({"beam": 0}, "beam 0 must be at least 1"),
        ({"beam": -1}, "beam -1 must be at least 1"),
        ({"beam": 2.5}, "beam 2.5 must be a whole number"),
        ({"beam": "5"}, "beam '5' must be a whole number"),
        ({"beam": True}, "beam True must be a whole number"),
        ({"lenpen": "1"}, "lenpen '1' must be a finite number"),
        ({"lenpen": float("nan")}, "lenpen nan must be a finite number"),
        ({"max_len_b": -1}, "max_len_b -1 must be at least 0"),
        ({"temperature": 0.0}, "temperature 0.0 must be positive"),
        ({"sampling": True, "sampling_topp": 0.0}, "sampling_topp 0.0 must be a probability above 0, or -1"),
        ({"sampling": True, "sampling_topk": 0}, "sampling_topk 0 must be at least 1, or -1 for all words"),
        ({"sampling": True, "sampling_topk": 10**6}, "sampling_topk 1000000: the model has .* words; give fewer, or"),
        ({"constraints": "ordered"}, "constraints 'ordered' is known to fairseq-generate alone; leave it out"),
        ({"prefix_size": 3}, "prefix_size 3 is known to fairseq-generate alone"),
        ({"no_repeat_ngram_size": 1}, "no_repeat_ngram_size 1: no word twice, .* give 2 or more, or 0"),
        ({"sampling": 1}, "sampling 1 must be True or False"),
        ({"print_alignment": "firm"}, "print_alignment 'firm' must be None or one of hard, soft"),
    ],
)
def test_options_that_do_not_exist_or_make_no_sense(hub, sentences, options, message):
    for sentence in (sentences[0], [], ""):
        with pytest.raises(ValueError, match=message):
            hub.translate(sentence, **options)
    with pytest.raises(ValueError, match=message):
        hub.sample(sentences[:1], **options)
    with pytest.raises(ValueError, match=message):
        hub.generate([hub.encode(sentences[0])], **options)


def test_a_seed_repeats_a_sample_and_leaves_the_random_numbers_alone(hub, sentences):
    options = {"beam": 1, "sampling": True, "max_len_b": 12}
    before = torch.get_rng_state()
    assert hub.translate(sentences[0], seed=3, **options) == hub.translate(sentences[0], seed=3, **options)
    assert torch.equal(torch.get_rng_state(), before)


# --- where a model is looked for ----------------------------------------------------------------------------------

MODELS = pytest.mark.parametrize("model", [MacaronModel, MacaronLanguageModel])


@MODELS
@pytest.mark.parametrize("name", ["nowhere", "facebook/wmt19-en-de", "transformer.wmt19.en-de", "../nowhere"])
def test_a_name_that_is_no_folder(model, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"{name}: there is no such folder \(looked for .*not downloaded by name; give"
    ):
        model.from_pretrained(name)


@MODELS
@pytest.mark.parametrize("name", ["https://example.org/model.tar.gz", "s3://bucket/model", "file:///tmp"])
def test_addresses_are_not_fetched(model, name):
    with pytest.raises(
        ValueError, match="is an address, and nothing is fetched here; download it, unpack it with a safe"
    ):
        model.from_pretrained(name)


@MODELS
@pytest.mark.parametrize(("value", "kind"), [(None, TypeError), (5, TypeError), (b"x", TypeError), ("", ValueError)])
def test_what_is_no_path(model, value, kind):
    with pytest.raises(kind, match="model_name_or_path"):
        model.from_pretrained(value)


def hostile_archive(path: Path, mode: str) -> None:
    """Members outside the folder, an absolute one, and a link out of it."""
    with tarfile.open(path, mode) as archive:
        for name in ("model/../../outside", str(path.parent / "absolute"), "model/model.pt"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"bad"))
        link = tarfile.TarInfo("model/dict.de.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


@MODELS
@pytest.mark.parametrize(
    ("name", "mode"), [("m.tar.gz", "w:gz"), ("m.tar.bz2", "w:bz2"), ("m.tar", "w"), ("m.tgz", "w:gz"), ("m", "w")]
)
def test_archives_are_left_alone(model, name, mode, tmp_path, dictionary_folder):
    path = tmp_path / "in" / "here" / name
    path.parent.mkdir(parents=True)
    hostile_archive(path, mode)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"is an archive, which is not unpacked here; unpack it yourself with a safe tool"
    ):
        model.from_pretrained(str(path))
    checkpoint = path.parent / "model.pt"
    checkpoint.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"data_name_or_path=.*is an archive"):
        model.from_pretrained(path.parent, "model.pt", str(path))
    assert path.read_bytes() == before
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted([path, checkpoint])


@MODELS
def test_a_file_is_not_the_folder(model, trained):
    with pytest.raises(ValueError, match=r"is a file, but from_pretrained takes a folder; .*'checkpoint_last\.pt'"):
        model.from_pretrained(str(trained.checkpoint))


def test_folders_of_another_kind(trained, tiny_data_bin, dictionary_folder, tmp_path):
    def message(folder: Path, *arguments: object) -> str:
        with pytest.raises(
            ValueError, match="from_pretrained takes the folder of a released model, or a folder of"
        ) as e:
            MacaronModel.from_pretrained(str(folder), *arguments)
        return str(e.value)

    (tmp_path / "empty").mkdir()
    assert "no checkpoint 'model.pt' there; the folder is empty" in message(tmp_path / "empty")
    for name, kind in (("bert", "macaron_bert"), ("llama", "llama")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
        (tmp_path / name / "model.safetensors").write_bytes(b"")
        assert f"it is a Hugging Face model (model_type {kind}), which " in message(tmp_path / name)
    assert "it holds binarised data, which is for data_name_or_path" in message(tiny_data_bin)
    (tiny_data_bin_text := tmp_path / "data-bin").mkdir()
    for name in ("text.json", "dict.de.txt", "train.de-en.de.idx"):
        (tiny_data_bin_text / name).write_text("{}", encoding="utf-8")
    assert "it holds binarised data" in message(tiny_data_bin_text)
    assert "its checkpoints are checkpoint" in message(trained.folder)
    assert "no checkpoint 'checkpoint9.pt' there" in message(trained.folder, "checkpoint9.pt")
    both = os.pathsep.join(["checkpoint_last.pt", "checkpoint9.pt"])
    assert "no checkpoint 'checkpoint9.pt' there" in message(trained.folder, both)
    (tmp_path / "run" / "release").mkdir(parents=True)
    (tmp_path / "run" / "release" / "text.json").write_text("{}", encoding="utf-8")
    assert f"its released model is {tmp_path / 'run' / 'release'}" in message(tmp_path / "run")
    (tmp_path / "other").mkdir()
    for n in range(9):
        (tmp_path / "other" / f"photo{n}.jpg").write_bytes(b"")
    assert "it holds photo0.jpg, photo1.jpg" in message(tmp_path / "other")


def test_dictionaries_that_are_not_there(trained, dictionary_folder, tmp_path):
    folder, name = str(trained.folder), "checkpoint_last.pt"
    with pytest.raises(ValueError, match=r"no dictionary \(dict\.\*\.txt\) there.*data_name_or_path \(now '\.'\)"):
        MacaronModel.from_pretrained(folder, name)
    with pytest.raises(ValueError, match=r"no dictionary"):
        MacaronModel.from_pretrained(folder, name, None)
    with pytest.raises(ValueError, match=r"data_name_or_path=.*nowhere: there is no such folder"):
        MacaronModel.from_pretrained(folder, name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data_name_or_path=.*is a file; give the folder with its dict"):
        MacaronModel.from_pretrained(folder, name, str(dictionary_folder / "dict.de.txt"))
    (tmp_path / "dict.fr.txt").write_text("a 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"does not say its languages, and it holds dict\.de\.txt.* as source_lang"):
        MacaronModel.from_pretrained(folder, name, dictionary_folder)
    with pytest.raises(ValueError, match=r"no dict\.de\.txt there; it holds dict\.fr\.txt\. .*source_lang"):
        MacaronModel.from_pretrained(folder, name, tmp_path, source_lang="de", target_lang="en")


def test_paths_and_ensembles(trained, dictionary_folder, sentences):
    names = os.pathsep.join(["checkpoint_last.pt"] * 2)
    two = MacaronModel.from_pretrained(trained.folder, names, dictionary_folder, source_lang="de", target_lang="en")
    assert len(two.models) == 2 and two.translate(sentences[0], beam=1, max_len_b=4)


def test_a_sub_word_model_that_is_not_used_is_said(trained, dictionary_folder, tmp_path, caplog):
    (tmp_path / "model.pt").symlink_to(trained.checkpoint)
    languages = {"source_lang": "de", "target_lang": "en"}
    MacaronModel.from_pretrained(tmp_path, "model.pt", dictionary_folder, **languages)
    assert "bpecodes" not in caplog.text
    (tmp_path / "bpecodes").write_text("#version: 0.2\na b</w>\n")
    MacaronModel.from_pretrained(tmp_path, "model.pt", dictionary_folder, **languages)
    assert "bpecodes lies there, but no bpe is given" in caplog.text
    caplog.clear()
    MacaronModel.from_pretrained(tmp_path, "model.pt", dictionary_folder, bpe="subword_nmt", **languages)
    assert "no bpe is given" not in caplog.text


def test_a_model_of_another_kind(trained, dictionary_folder):
    with pytest.raises(
        ValueError, match=r"holds a MacaronTiny, no MacaronLanguageModel; open it with from_pretrained of"
    ):
        languages = {"source_lang": "de", "target_lang": "en"}
        MacaronLanguageModel.from_pretrained(trained.folder, "checkpoint_last.pt", dictionary_folder, **languages)


# --- a released folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        {"cfg": {"model": {"_name": "transformer"}, "task": {"_name": "translation"}}},
        {"cfg": {"model": {"_name": "macaron_lm_tiny"}, "task": {"_name": "translation"}}},
        {"cfg": {"model": {"_name": "macaron_tiny"}, "task": {"_name": "translation_lev"}}},
        {"cfg": {"model": {"_name": ["macaron_tiny"]}, "task": {"_name": "translation"}}},
        {"cfg": {"model": Namespace(_name="macaron_tiny"), "task": {"_name": "translation"}}},
        {"cfg": {"model": "macaron_tiny"}},
        {"cfg": None, "args": Namespace(arch="macaron_tiny", task="translation")},
        {"args": Namespace(arch="fconv", encoder_layers="__import__('os').system('true')", task="translation")},
        {
            "args": Namespace(arch="fconv"),
            "cfg": {"model": {"_name": "macaron_tiny"}, "task": {"_name": "translation"}},
        },
    ],
)
def test_a_release_holds_a_model_of_ours_by_its_own_word(state):
    with pytest.raises(CheckpointError, match=r"a released folder holds a MacaronModel for the task 'translation'"):
        hub_module.check_settings(Path("model.pt"), state, MacaronModel)
    good = {"cfg": {"model": {"_name": "macaron_tiny"}, "task": {"_name": "translation"}}, "args": None}
    hub_module.check_settings(Path("model.pt"), good, MacaronModel)
    good["model"] = {"encoder.layers.0.a": 0, "encoder.layers.1.a": 0}
    for layers in (10**7, 1, -2, "x"):  # built by that word, ten million layers would fill the memory
        good["cfg"]["model"]["encoder_layers"] = layers
        with pytest.raises(CheckpointError, match=rf"says encoder_layers={layers!r}, but holds the parameters of 2"):
            hub_module.check_settings(Path("model.pt"), good, MacaronModel)
    assert not issubclass(TransformerModel, MacaronModel)


def test_a_release_takes_the_model_and_its_sizes_from_the_checkpoint_and_nothing_else():
    elsewhere = {"activation_fn": "${oc.env:HOME}", "decoder_embed_path": "x"}
    found = {
        "model": {"_name": "macaron_tiny", "dropout": 0.2, **elsewhere},
        "task": {"_name": "translation", "max_source_positions": 50, "eval_bleu": True, "data": "/x"},
        "dataset": {"max_tokens": 10},
        "generation": {"replace_unk": "/etc/passwd"},
        "bpe": {"_name": "gpt2"},
    }
    description = released.Description(TextSettings("de", "en"), {"beam": 3})
    cfg = hub_module._configuration(Path("/folder/model.pt"), found, description, {})
    assert cfg.model == {"_name": "macaron_tiny", "dropout": 0.2}
    assert cfg.task == {
        **{"_name": "translation", "data": "/folder", "source_lang": "de", "target_lang": "en"},
        **{"max_source_positions": 50},
    }
    assert (cfg.dataset.max_tokens, cfg.generation.replace_unk, cfg.bpe) == (hub_module.BATCH_TOKENS, None, None)
