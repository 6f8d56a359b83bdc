"""python -m recipes.warm_start on a tiny BERT with random weights: the start, the distillation, what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormModel,
)

from macaron.bert import MacaronBertConfig, MacaronBertModel, from_transformers
from macaron.bracketing import Widths
from recipes.common.errors import RecipeError
from recipes.warm_start import distill, fit
from recipes.warm_start.__main__ import main
from recipes.warm_start.settings import DistillSettings, settings_of
from recipes.warm_start.text import Collator, TeachersText, held_out

WORDS = ["the", "a", "cat", "dog", "bird", "house", "tree", "sees", "finds", "likes", "has", "old", "new", "big", "red"]
WORDS += ["small", "green", "and", "or", "not"]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
QUICK = ["--updates", "6", "--batch-size", "4", "--eval-every", "3", "--max-length", "32", "--fit-tokens", "1024"]
QUICK += ["--valid-fraction", "0.2", "--sentences", "40", "--lr", "5e-4"]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]
    return BertTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, model_max_length=64)


def random_bert() -> BertModel:
    """With norms of all kinds, and attention and FFNs that move the particles."""
    torch.manual_seed(3)
    model = BertModel(BertConfig(vocab_size=len(WORDS) + 6, max_position_embeddings=64, **SIZE)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            elif "embeddings" not in name:
                parameter.mul_(8)
    return model


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tokenizer: BertTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "bert"
    random_bert().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    )
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(1)
    documents = []
    for _ in range(40):
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(5, 12))) + "." for _ in range(8)]
        documents.append("\n".join(lines))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n\n".join(documents))
    return path


Run = Callable[..., int]


@pytest.fixture
def run(teacher: Path, text: Path) -> Run:
    def call(out: Path, *flags: object, teacher: Path = teacher) -> int:
        return main(["--teacher", str(teacher), "--text", str(text), "--out", str(out), *QUICK, *map(str, flags)])

    return call


@pytest.fixture(scope="module")
def finished(teacher: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["--teacher", str(teacher), "--text", str(text), "--out", str(out), *QUICK]) == 0
    return out


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def test_the_nearest_possibility_is_kept_and_training_brings_it_nearer(finished: Path) -> None:
    found = result(finished)
    tried = {row["name"]: row["distance"] for row in found["start"]["tried"]}
    assert list(tried) == [possibility.name for possibility in fit.POSSIBILITIES]
    assert tried[found["start"]["chosen"]] == min(tried.values())
    assert tried["outputs"] < 0.7 * tried["order"]  # what is fitted is nearer
    assert found["results"]["distance"] < min(tried.values())
    assert found["start"]["widths"] == [24, 24]
    added = 2 * (2 * 32 + 32)  # a norm and an offset a layer
    assert found["parameters"]["student"] == found["parameters"]["teacher"] + added


def test_the_folder_is_what_users_load(finished: Path, teacher: Path, tokenizer: BertTokenizer) -> None:
    model = AutoModel.from_pretrained(finished / "model").eval()
    assert isinstance(model, MacaronBertModel) and model.config.splitting == "strang"
    assert model.config.hidden_dropout_prob == 0.1 and all(p.requires_grad for p in model.parameters())
    assert AutoTokenizer.from_pretrained(finished / "model").get_vocab() == tokenizer.get_vocab()
    assert (finished / "model" / "modules.json").is_file() and (finished / "model" / "1_Pooling").is_dir()
    card = (finished / "model" / "README.md").read_text()
    assert "warm-started from bert" in card and "| distance |" in card
    assert "Distance from the teacher" in (finished / "report.html").read_text()
    theirs = BertModel.from_pretrained(teacher)
    table = model.embeddings.word_embeddings.weight
    assert torch.equal(table, theirs.embeddings.word_embeddings.weight)


def test_an_interrupted_run_ends_with_the_same_bits(
    finished: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = distill.training.Marker.on_save

    def killed(self: Any, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        save(self, args, state, *rest, **more)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    monkeypatch.setattr(distill.training.Marker, "on_save", killed)
    assert run(out) == 130
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["checkpoint-3"]
    monkeypatch.undo()
    assert run(out) == 0
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (out, finished))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_distillation_that_leads_away_is_told(
    teacher: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--teacher", str(teacher), "--text", str(text), "--out", str(tmp_path / "out"), *QUICK]
    assert main([*arguments, "--lr", "0.3", "--start", "outputs"]) == 0
    assert "is nearer to the teacher; more --updates or a lower --lr" in capsys.readouterr().out


def test_done_is_done(finished: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(finished) == 0
    assert capsys.readouterr().out.count("done before") == 8  # three of the text, five of the run


def test_all_neurons_behind_the_attention_begin_as_the_teacher(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "out", "--first-width", 24, "--second-width", 48, "--minutes", "0.01") == 1  # two budgets
    args = ("--first-width", 24, "--second-width", 48, "--updates", 2)
    assert run(tmp_path / "out", *args) == 0
    (row,) = result(tmp_path / "out")["start"]["tried"]
    assert row["distance"] < 1e-5 and row["cosine"] == pytest.approx(1, abs=1e-9)


def test_minutes_become_updates_once(teacher: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = [flag for flag in QUICK if flag not in ("--updates", "6")]
    command = ["--teacher", str(teacher), "--text", str(text), "--out", str(out), *flags, "--minutes", "0.005"]
    assert main(command) == 0
    stamp = json.loads((out / "stamps" / "budget.json").read_text())
    assert stamp["updates"] >= 2 and result(out)["updates"] == stamp["updates"]


def test_a_macaron_bert_is_read_where_it_lies(
    run: Run, tokenizer: BertTokenizer, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "lie"
    from_transformers(random_bert()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert run(tmp_path / "out", "--start", "weights", teacher=folder) == 0
    assert not (tmp_path / "out" / "teacher").exists()
    (row,) = result(tmp_path / "out")["start"]["tried"]
    assert row["distance"] == next(r["distance"] for r in result(finished)["start"]["tried"] if r["name"] == "weights")


def test_dry_run(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "FFNs of 24 and 24 neurons" in said and "6 updates of 4 examples" in said and not (tmp_path / "out").exists()


# -- what is refused


def test_another_teacher_in_the_same_folder(
    finished: Path, run: Run, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "bert"
    shutil.copytree(teacher, other)
    model = BertModel.from_pretrained(other)
    with torch.no_grad():
        model.pooler.dense.bias.add_(1)
    model.save_pretrained(other)
    assert run(finished, teacher=other) == 1
    assert "made with other settings (teacher.sha256" in capsys.readouterr().err


def saved(folder: Path, tokenizer: Any, model: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def strang(**changed: Any) -> MacaronBertModel:
    size = {"vocab_size": len(WORDS) + 6, "max_position_embeddings": 64, "normalize_before": False, **SIZE}
    return MacaronBertModel(MacaronBertConfig(**{**size, **changed}))


def no_number(model: Any) -> Any:
    with torch.no_grad():
        next(model.parameters())[1, 0] = float("nan")
    return model


def decoder() -> BertModel:
    return BertModel(BertConfig(vocab_size=len(WORDS) + 6, is_decoder=True, **SIZE))


def pre_norm() -> RobertaPreLayerNormModel:
    return RobertaPreLayerNormModel(RobertaPreLayerNormConfig(vocab_size=len(WORDS) + 6, pad_token_id=0, **SIZE))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (strang, "splitting='strang': only a BERT of attention and FFN, lie"),
        (lambda: strang(splitting="lie", embedding_size=16), "embedding_size=16 puts a linear layer"),
        (lambda: no_number(strang(splitting="lie")), "has NaN or infinities in embeddings.word_embeddings.weight; cop"),
        (lambda: no_number(random_bert()), "has NaN or infinities in embeddings.word_embeddings.weight; copy or down"),
        (decoder, "is_decoder=True makes it a decoder"),
        (pre_norm, "its layers are pre-norm"),
        (lambda: strang(splitting="lie", vocab_size=10), "ids up to 25, but its embeddings have 10 rows"),
        (lambda: strang(splitting="lie", max_position_embeddings=16), "max_length is 32, but the teacher has 16 pos"),
    ],
    ids=["strang", "projection", "no number", "no number of theirs", "decoder", "pre-norm", "vocabulary", "positions"],
)
def test_teachers_that_do_not_fit(
    make: Any, message: str, run: Run, tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", teacher=saved(tmp_path / "teacher", tokenizer, make())) == 1
    assert message in capsys.readouterr().err


def test_a_teacher_that_is_cut_off(run: Run, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bert"
    shutil.copytree(teacher, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert run(tmp_path / "out", teacher=folder) == 1
    assert "cannot be read" in capsys.readouterr().err
    (folder / "config.json").unlink()
    assert run(tmp_path / "out", teacher=folder) == 1
    assert "has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--second-width", "49"], "do not divide an FFN of 48 neurons"),
        (["--lr", "0"], "lr is 0.0 but must be positive"),
        (["--attention-weight", "-1"], "attention_weight is -1.0 but must be at least 0"),
        (["--minutes", "5"], "both are a budget"),
        (["--ridge", "nan"], "ridge is nan but must be a number"),
        (["--valid-fraction", "0"], "held out"),
    ],
)
def test_settings(flags: list[str], message: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", *flags) == 1
    assert message in capsys.readouterr().err


def test_missing_text(teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--teacher", str(teacher), "--out", str(tmp_path / "out")]) == 1
    assert "--text: missing" in capsys.readouterr().err
    assert main(["--teacher", str(teacher), "--text", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 1
    assert "no: cannot be read" in capsys.readouterr().err


def test_other_text_in_the_same_folder(
    finished: Path, run: Run, teacher: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "text.txt"
    other.write_text(text.read_text() + "\n\n\nthe cat sees the dog and the bird.")
    assert main(["--teacher", str(teacher), "--text", str(other), "--out", str(finished), *QUICK]) == 1
    assert "made with other settings" in capsys.readouterr().err
    other.write_text(text.read_text().replace("cat", "dog"))
    assert main(["--teacher", str(teacher), "--text", str(other), "--out", str(finished), *QUICK]) == 1
    assert "text.txt: has changed since" in capsys.readouterr().err


def test_text_of_another_tokenizer_of_the_same_words(tokenizer: BertTokenizer, text: Path, tmp_path: Path) -> None:
    data = settings_of(max_length=32, valid_fraction=0.2).text.examples("mlm", len(tokenizer))
    for _ in range(2):
        TeachersText(data, [text], tmp_path / "data", tokenizer).run()
    cased = BertTokenizer(vocab=dict(tokenizer.get_vocab()), do_lower_case=False)
    with pytest.raises(RecipeError, match=r"another tokenizer than the teacher's \(normalizer differ\)"):
        TeachersText(data, [text], tmp_path / "data", cased).run()


# -- its parts


def test_least_squares() -> None:
    x, w, b = torch.randn(200, 5), torch.randn(3, 5), torch.randn(3)
    y = x @ w.T + b
    found, offset = fit.least_squares(x.split(30), y.split(30), 1e-9)
    torch.testing.assert_close(found, w, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(offset, b, atol=1e-4, rtol=1e-4)
    constant = torch.cat([x, torch.ones(200, 1)], 1)  # beside the offset a feature that is always the same
    found, offset = fit.least_squares([constant], [y], 1e-9)
    torch.testing.assert_close(constant @ found.T + offset, y, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("widths", [Widths(24, 24), Widths(12, 36), Widths(4, 44)])
def test_fits_mend(widths: Widths, tokenizer: BertTokenizer) -> None:
    """The more neurons stand where they stood, the nearer; and each fit is nearer than the one without it."""
    lie = from_transformers(random_bert())
    batches = [{"input_ids": torch.randint(5, len(WORDS) + 6, (8, 12)), "attention_mask": torch.ones(8, 12).long()}] * 4
    apart = [
        fit.distance(fit.begin(possibility, lie, widths, batches, 1e-3), lie, batches)["distance"]
        for possibility in fit.POSSIBILITIES
        if possibility.name in ("activity", "inputs", "outputs")
    ]
    assert apart == sorted(apart, reverse=True) and apart[-1] < apart[0]


def test_states_stand_beside_each_other(tokenizer: BertTokenizer) -> None:
    """Where the start is exact, every state is the teacher's, and the loss is 0."""
    from macaron.bert import to_strang

    lie = from_transformers(random_bert())
    student = to_strang(lie, Widths(4, 48))
    batch = {"input_ids": torch.randint(5, len(WORDS) + 6, (3, 9))}
    with torch.no_grad():
        assert distill.apart(student, lie, batch, DistillSettings()) < 1e-8
        with distill.of_student(student) as s, distill.of_teacher(lie) as t, distill.of_attention(student) as q:
            lie(**batch), student(**batch)
        student(**batch)  # is not listed any more
    assert len(s) == len(t) == 4
    torch.testing.assert_close(s, t, atol=1e-4, rtol=1e-4)
    assert distill.loss_of(distill.relative([2 * x for x in t], t), 0.5) == pytest.approx(1.5)
    assert [x.shape[-1] for x in q] == [3 * 32, 3 * 32]
    with torch.no_grad():  # keys of twice the size: seen where they are looked at, and in no state but those behind
        student.layers[-1].flows[1].qkv_proj.weight[32:64] *= 2
    without, half = (distill.apart(student, lie, batch, DistillSettings(attention_weight=a)) for a in (0.0, 0.5))
    assert half > without > 0


def test_every_other_pair_is_its_first_segment(tokenizer: BertTokenizer) -> None:
    import numpy as np

    rows = [
        {"input_ids": np.array([2, 7, 3, 8, 9, 3]), "second": 3, "is_next": 1, "pass": 0, "example": n} for n in (0, 1)
    ]
    batch = Collator(tokenizer)(rows)
    assert batch["input_ids"].tolist() == [[2, 7, 3, 8, 9, 3], [2, 7, 3, 0, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0] * 6]
    assert batch["attention_mask"].sum(1).tolist() == [6, 3]
    for row in rows:
        row |= {"is_next": -1, "second": 6}
    batch = Collator(tokenizer)(rows)
    assert "token_type_ids" not in batch and batch["attention_mask"].all()


def test_held_out_sentences() -> None:
    documents = {"text": ["This is the first of the sentences. " * 30, "Short. " * 30]}
    assert len(held_out(documents, 7)) == 7
    with pytest.raises(RecipeError, match="0 sentences of 20 to 400 characters"):
        held_out({"text": ["Short. " * 30]}, 7)


def test_settings_of_refuses_what_is_no_start() -> None:
    with pytest.raises(RecipeError, match="start is 'x'; choose one of best"):
        settings_of(start="x")
