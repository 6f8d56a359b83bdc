"""`from_pretrained(…).translate`: a model in a script, without commands."""

from __future__ import annotations

import pytest
import torch
from macaron.user_dir import hub as hub_module

from macaron import MacaronModel


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
        torch.testing.assert_close(tensor, trained.weights[name], rtol=0, atol=0)


def test_translate_takes_one_sentence_or_many(hub, sentences):
    together = hub.translate(sentences, beam=3, max_len_b=12)
    assert together == [hub.translate(sentence, beam=3, max_len_b=12) for sentence in sentences]
    assert all(translation.split() for translation in together)


def test_a_batch_scores_like_its_sentences(hub, sentences):
    tokens = [hub.encode(sentence) for sentence in sentences]
    together = [candidates[0]["score"] for candidates in hub.generate(tokens, beam=3, max_len_b=12)]
    alone = [hub.generate(one, beam=3, max_len_b=12)[0]["score"] for one in tokens]
    torch.testing.assert_close(torch.stack(together), torch.stack(alone), rtol=0, atol=1e-5)
    assert len(set(map(float, together))) == len(sentences)


def test_sampling(hub, sentences):
    one, other = (hub.translate(sentences[0], beam=1, sampling=True, seed=n, max_len_b=12) for n in (1, 2))
    assert one != other


def test_alignment(hub, sentences):
    source = hub.encode(sentences[0])
    best = hub.generate(source, beam=2, max_len_b=12, print_alignment="hard")[0]
    pairs = [tuple(map(int, pair)) for pair in best["alignment"]]
    assert [there for _, there in pairs] == list(range(len(best["tokens"]) - 1))
    assert all(0 <= here < len(source) for here, _ in pairs)


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


@pytest.mark.parametrize(("lower", "words"), [(True, 'don \'t " a-b "'), (False, 'Don \'t " A-b "')])
def test_words_of_raw_text(lower, words):
    moses = hub_module.Words(
        {"tokenizer": "moses", "aggressive_hyphens": False, "lowercase": lower, "source": "en", "target": "en"}
    )
    escaped = words.replace("'", "&apos;").replace('"', "&quot;")
    assert moses.encode('Don’t "A-b"') == escaped
    assert moses.decode("&quot; i don &apos;t &quot;") == '"i don\'t"'
    plain = hub_module.Words({"tokenizer": "none", "lowercase": lower})
    assert plain.encode("  Don't   go ") == ("don't go" if lower else "Don't go")
    assert plain.decode("as it is") == "as it is"
