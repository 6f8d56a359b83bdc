"""One command for each kind of model: its tables against the model itself, its page, and what it refuses."""

from __future__ import annotations

import csv
import gzip
import html
import importlib.util
import json
import math
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macaron import analysis
from recipes.trajectories import page
from recipes.trajectories.__main__ import main
from recipes.trajectories.measure import QUANTITIES
from recipes.trajectories.models import open_model

_spec = importlib.util.spec_from_file_location("trajectories_conftest", Path(__file__).with_name("conftest.py"))
assert _spec and _spec.loader
conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conftest)

FILES = {"tokens.csv", "layers.csv", "layers.png", "trajectories.html"}


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def data_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "trajectories.html").read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(content)["views"]


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """(N, K + 1), of the rows of one sentence; NaN where the field is empty."""
    states = 1 + max(int(row["state"]) for row in rows)
    return np.array([float(row[name] or "nan") for row in rows]).reshape(-1, states)


@pytest.fixture(scope="module")
def bert_run(bert_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert_run")
    with gzip.open(folder / "text.txt.gz", "wt", encoding="utf-8") as file:
        file.write("the dog sees a cat .\n\n \u2028\nthe man is running\r\n" + "a hat .\n" * 3)
    assert main([str(bert_folder), "--text", str(folder / "text.txt.gz"), "--out", str(folder / "out"),
                 "--lines", "3", "--shown", "2"]) == 0  # fmt: skip
    return folder / "out"


WRITTEN = {"rtol": 2e-6, "atol": 1e-6}  # seven digits of a float32, which batches of another size round otherwise


def test_bert_tables_are_what_the_model_does(bert_run: Path, bert_folder: Path) -> None:
    from macaron.bert import MacaronBertForMaskedLM

    assert {path.name for path in bert_run.iterdir()} == FILES
    rows = read(bert_run / "tokens.csv")
    assert sorted({int(row["line"]) for row in rows}) == [1, 4, 5], (
        "blank lines are no sentences, and keep their number"
    )
    rows = [row for row in rows if row["line"] == "4"]
    tokens = ["[CLS]", "the", "man", "[UNK]", "run", "##ning", "[SEP]"]
    assert [row["token"] for row in rows if row["state"] == "0"] == tokens

    model = MacaronBertForMaskedLM.from_pretrained(bert_folder).eval()
    ids = torch.tensor([[int(row["id"]) for row in rows if row["state"] == "0"]])
    with analysis.record(model) as trajectories, torch.no_grad():
        logits = model(ids).logits
    trajectory = trajectories["macaron_bert.layers"]
    K = 9
    assert column(rows, "length").shape == (len(tokens), K + 1)

    def check(name: str, expected: torch.Tensor, states: list[int]) -> None:
        found = column(rows, name)
        np.testing.assert_allclose(found[:, states], expected.T.numpy(), **WRITTEN, err_msg=name)
        assert np.isnan(np.delete(found, states, axis=1)).all(), f"{name} is only where it exists"

    every, ends = list(range(K + 1)), [3, 6, 9]
    check("length", analysis.lengths(trajectory), every)
    check("speed", analysis.speeds(trajectory), every[1:])
    check("angle", torch.rad2deg(torch.arccos(analysis.cosines(trajectory).double())).float(), every[2:])
    check("ratio", analysis.ratios(trajectory), ends)
    check("splitting_error", analysis.splitting_errors(trajectory), ends)
    check("commutator", analysis.commutators(trajectory), ends)
    relative = analysis.commutators(trajectory) / analysis.lengths(trajectory)[[0, 3, 6]]
    check("commutator_relative", relative, ends)
    p = torch.softmax(logits[0], dim=-1)
    assert [row["lens_token"] for row in rows if row["state"] == "9"] == [
        open_model(bert_folder, None, {}, "cpu").word(n)
        for n in p.argmax(-1).tolist()  # type: ignore[attr-defined]
    ]
    np.testing.assert_allclose(column(rows, "lens_probability")[:, -1], p.max(-1).values.numpy(), **WRITTEN)
    np.testing.assert_allclose(column(rows, "lens_final")[:, -1], p.max(-1).values.numpy(), **WRITTEN)
    np.testing.assert_allclose(column(rows, "lens_entropy")[:, -1], (-p * p.log()).sum(-1).numpy(), **WRITTEN)
    flows = [(row["layer"], row["flow"], row["step"]) for row in rows[: K + 1]]
    assert flows[:4] == [("0", "", ""), ("1", "ffn", "0.5"), ("1", "self_attention", "1.0"), ("1", "ffn", "0.5")]


def test_the_layers_are_the_mean_of_the_tokens(bert_run: Path) -> None:
    by_state = defaultdict(list)
    for row in read(bert_run / "tokens.csv"):
        by_state[int(row["state"])].append(row)
    rows = read(bert_run / "layers.csv")
    assert len(rows) == len(by_state) == 10
    for row in rows:
        tokens = by_state[int(row["state"])]
        assert int(row["tokens"]) == len(tokens) == 8 + 7 + 5
        for name in ("length", "speed", "splitting_error", "lens_agrees"):
            values = [float(token[name]) for token in tokens if token[name]]
            if not values:
                assert row[f"{name}_mean"] == row[f"{name}_q1"] == ""
                continue
            # seven digits, of values of seven digits
            assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(values), rel=1e-6)
            assert float(row[f"{name}_q3"]) == pytest.approx(np.percentile(values, 75), rel=1e-6)
    assert float(rows[-1]["lens_agrees_mean"]) == 1


def test_the_page_holds_the_paths_of_the_sentences_to_be_shown(bert_run: Path) -> None:
    views = data_of(bert_run)
    assert [(view["line"], view["text"]) for view in views] == [(1, "the dog sees a cat ."), (4, "the man is running")]
    view = views[1]
    assert view["tokens"][-3:] == ["run", "·ning", "[SEP]"] and view["pieces"][-2] == "##ning"
    points = np.array(view["planes"]["states"]["points"])
    assert points.shape == (10, 7, 2) and 0 < sum(view["planes"]["states"]["explained"]) <= 1
    rows = [row for row in read(bert_run / "tokens.csv") if row["line"] == "4"]
    moved = np.linalg.norm(np.diff(points, axis=0), axis=-1).T  # (N, K), in the plane
    steps = np.array([0.5, 1.0, 0.5] * 3)
    assert (moved <= steps * column(rows, "speed")[:, 1:] * (1 + 1e-3)).all(), "a projection is never longer"
    text = (bert_run / "trajectories.html").read_text(encoding="utf-8")
    links = set(re.findall(r"""(?:https?:|src=|href=|url\(|@import)[^\s"']*""", re.sub(r"base64,[^\"]*", "", text)))
    assert links == {"http://www.w3.org/2000/svg", "src="}, "all is inside"
    assert (bert_run / "layers.png").read_bytes()[:4] == b"\x89PNG"


def test_a_release_with_translations(release: Path, tmp_path: Path, capsys) -> None:
    text = write(tmp_path / "de", "ein Mann ein Haus .", "", "Haus")
    target = write(tmp_path / "en", "a man a house .", "ignored", "house")
    assert main([str(release), "--text", str(text), "--target", str(target), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert "encoder, the mean over 10 tokens" in said.out and "decoder, the mean over 8 tokens" in said.out
    assert said.err == ""
    rows = read(tmp_path / "out" / "tokens.csv")
    first = [row for row in rows if row["line"] == "1" and row["state"] == "0"]
    assert [row["token"] for row in first if row["side"] == "encoder"] == [
        "ein",
        "Mann",
        "ein",
        "Hau@@",
        "s",
        ".",
        "</s>",
    ]
    assert [row["token"] for row in first if row["side"] == "decoder"] == ["</s>", "a", "man", "a", "house", "."]
    sides = {row["side"]: row for row in read(tmp_path / "out" / "layers.csv")}
    assert sides["encoder"]["layer"] == "3" and sides["decoder"]["layer"] == "2"
    assert sides["encoder"]["lens_agrees_mean"] == "" and sides["decoder"]["lens_agrees_mean"] == "1"

    from macaron import MacaronModel

    hub = MacaronModel.from_pretrained(str(release))
    source = hub.encode("ein Mann ein Haus .")
    written = hub.task.target_dictionary.encode_line("a man a house .", add_if_not_exist=False).long()
    previous = torch.cat([written[-1:], written[:-1]])
    with torch.no_grad():
        logits, _ = hub.models[0].eval()(source[None], torch.tensor([len(source)]), previous[None])
    decoder = [row for row in rows if row["line"] == "1" and row["side"] == "decoder"]
    expected = [hub.task.target_dictionary[n] for n in logits[0].argmax(-1).tolist()]
    assert [row["lens_token"] for row in decoder if row["state"] == "8"] == expected
    assert {view["side"] for view in data_of(tmp_path / "out")} == {"encoder", "decoder"}


def test_a_release_without_translations_is_its_encoder(release: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "de", "ein Mann")
    assert main([str(release), "--text", str(text), "--out", str(tmp_path / "out")]) == 0
    assert {row["side"] for row in read(tmp_path / "out" / "layers.csv")} == {"encoder"}
    assert data_of(tmp_path / "out")[0]["lens"] is None


def test_a_language_models_checkpoint(data_folder: Path, tmp_path: Path) -> None:
    path = conftest.save_checkpoint(tmp_path / "lm.pt", data_folder, "macaron_lm_tiny")
    text = write(tmp_path / "text", "a man unknown .")
    options = ["--text", str(text), "--data", str(data_folder), "--out", str(tmp_path / "out")]
    assert main([str(path), *options]) == 0
    rows = read(tmp_path / "out" / "tokens.csv")
    first = [row for row in rows if row["state"] == "0"]
    assert [row["token"] for row in first] == ["</s>", "a", "man", "unknown", "."] and first[3]["id"] == "3"

    opened = open_model(path, data_folder, {}, "cpu")
    with torch.no_grad():
        logits, _ = opened.model(torch.tensor([[int(row["id"]) for row in first]]))
    last = max(int(row["state"]) for row in rows)
    words = opened.hub.task.target_dictionary  # type: ignore[attr-defined]
    expected = [words[n] for n in logits[0].argmax(-1).tolist()]
    assert [row["lens_token"] for row in rows if int(row["state"]) == last] == expected


def test_a_post_norm_checkpoint_has_no_local_error(data_folder: Path, tmp_path: Path, capsys) -> None:
    options = {"encoder_normalize_before": False, "decoder_normalize_before": False, "splitting": "lie"}
    path = conftest.save_checkpoint(tmp_path / "post.pt", data_folder, **options)
    text = write(tmp_path / "text", "ein Mann")
    assert main([str(path), "--text", str(text), "--data", str(data_folder), "--out", str(tmp_path / "out")]) == 0
    for row in read(tmp_path / "out" / "layers.csv"):
        assert row["splitting_error_mean"] == row["commutator_mean"] == "" and float(row["length_mean"]) > 0


def test_an_encoder_without_a_head_has_no_lens(tmp_path: Path) -> None:
    folder = conftest.save_bert(tmp_path / "encoder", "MacaronBertModel", final_norm=True)
    text = write(tmp_path / "text", "the dog")
    assert main([str(folder), "--text", str(text), "--out", str(tmp_path / "out")]) == 0
    assert {row["lens_token"] for row in read(tmp_path / "out" / "tokens.csv")} == {""}


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{facts}} {{data}} & \"'"


def test_text_is_never_markup(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>&model"
    shutil.copytree(bert_folder, folder)
    text = write(tmp_path / "<i>text", HOSTILE)
    assert main([str(folder), "--text", str(text), "--out", str(tmp_path / "out")]) == 0
    written = (tmp_path / "out" / "trajectories.html").read_text(encoding="utf-8")
    assert data_of(tmp_path / "out")[0]["text"] == HOSTILE
    for piece in ("alert(1)</script>", "<img src", "<i>text", "<b>&model"):
        assert piece not in written, piece
    assert html.escape("<b>&model") in written and written.count("</script>") == 2


@pytest.mark.parametrize(
    ("piece", "shown"),
    [("▁Haus", "Haus"), ("▁", "▁"), ("##ing", "·ing"), ("##", "##"), ("Hau@@", "Hau·"), ("@@", "@@"), ("&apos;", "'"),
     ("&lt;b&gt;@@", "<b>·"), ("</s>", "</s>")],
)  # fmt: skip
def test_pieces_as_one_reads_them(piece: str, shown: str) -> None:
    assert page.plain(piece) == shown


def test_numbers_that_are_none_are_null() -> None:
    assert page.rounded(np.array([[1.23456789, math.nan], [math.inf, 0.0]])) == [[1.2346, None], [None, 0.0]]


def test_the_readme_says_what_is_true(project_root: Path, bert_folder: Path, capsys) -> None:
    text = (project_root / "recipes" / "trajectories" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^(\| `.*?) \|", text, re.MULTILINE))))
    named |= {"commutator_relative"} if "`_relative`" in text else set()
    assert {*QUANTITIES, "lens_token"} <= named
    functions = re.findall(r"\| `(\w+)` \|$", text, re.MULTILINE)
    assert functions and set(functions) <= set(analysis.__all__)

    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    opened = open_model(bert_folder, None, {}, "cpu")
    names = {"given": opened.model, "batch": {"input_ids": torch.tensor([[1, 2, 3]])}}
    exec(example.replace("model = ...", "model = given"), names)  # our own text
    assert capsys.readouterr().out.startswith("macaron_bert.layers torch.Size([10, 3, 32]) tensor([")


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path, capsys):
    """Run and return what stands on stderr; nothing may be written."""

    def run(*words: object) -> str:
        assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 1
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
        said = capsys.readouterr().err
        assert said.startswith("recipes.trajectories: ") and "unexpected" not in said
        return said

    return run


def test_nothing_is_overwritten(bert_folder: Path, tmp_path: Path, capsys) -> None:
    text = write(tmp_path / "text", "the dog")
    out = tmp_path / "out"
    out.mkdir()
    assert main([str(bert_folder), "--text", str(text), "--out", str(out)]) == 0, "an empty folder is taken"
    kept = {path: path.read_bytes() for path in out.iterdir()}
    for taken in (out, text, tmp_path / "link"):
        if taken.name == "link":
            taken.symlink_to(tmp_path / "nowhere")
        assert main([str(bert_folder), "--text", str(text), "--out", str(taken)]) == 1
        assert f"--out {taken}: is there already, and nothing is overwritten" in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in out.iterdir()}


def test_models_that_are_none(refused, bert_folder: Path, tmp_path: Path, data_folder: Path) -> None:
    text = write(tmp_path / "text", "the dog")
    assert "nowhere: there is no such file or folder" in refused(tmp_path / "nowhere", "--text", text)
    said = refused(data_folder, "--text", text)
    assert "neither a released model (no text.json) nor a Macaron BERT (no config.json), it holds dict.de.txt" in said
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "gpt2"}')
    assert "its model_type is 'gpt2', and there are no particle layers" in refused(other, "--text", text)
    for broken in ("[]", "{", "{}"):
        (other / "config.json").write_text(broken)
        assert "config.json: is no configuration of a model" in refused(other, "--text", text)
    damaged = tmp_path / "damaged"
    shutil.copytree(bert_folder, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "damaged: cannot be opened: " in refused(damaged, "--text", text)
    shutil.copyfile(bert_folder / "model.safetensors", weights)
    for name in ("tokenizer.json", "vocab.txt"):
        (damaged / name).unlink(missing_ok=True)
    assert "has no tokenizer" in refused(damaged, "--text", text)


def test_checkpoints_that_are_none(refused, tmp_path: Path, data_folder: Path) -> None:
    text = write(tmp_path / "text", "ein Mann")
    path = conftest.save_checkpoint(tmp_path / "model.pt", data_folder)
    assert "give the folder of those that it was trained with" in refused(path, "--text", text)
    assert "there is no such folder" in refused(path, "--text", text, "--data", tmp_path / "nowhere")
    state = torch.load(path, weights_only=False)
    state["cfg"]["model"]["_name"] = "transformer"
    torch.save(state, tmp_path / "other.pt")
    assert "its architecture is 'transformer'" in refused(tmp_path / "other.pt", "--text", text, "--data", data_folder)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(path.read_bytes()[:5000])
    assert "cut.pt" in refused(cut, "--text", text, "--data", data_folder)
    for name in state["model"]:
        if name.endswith("fc1.weight"):
            state["model"][name].fill_(float("nan"))
    state["cfg"]["model"]["_name"] = "macaron_tiny"
    torch.save(state, tmp_path / "diverged.pt")
    said = refused(tmp_path / "diverged.pt", "--text", text, "--data", data_folder)
    assert "makes states that are no finite numbers" in said


@pytest.mark.parametrize("rule", ["multistep", "rk2_learned", "rk4"])
def test_under_a_rule_the_states_are_those_of_the_rule(rule: str, tmp_path: Path, data_folder: Path) -> None:
    """Of both hosts: lengths of the hidden states, and at the end the words that the model itself reads."""
    chosen = {"depth_rule": rule, **({"multistep_init": "0.5"} if rule == "multistep" else {})}
    folder = conftest.save_bert(tmp_path / "bert", **chosen)
    text = write(tmp_path / "text", "the dog sees a big cat .")
    assert main([str(folder), "--text", str(text), "--out", str(tmp_path / "out")]) == 0
    opened = open_model(folder, None, {}, "cpu")
    with torch.no_grad():
        ids = opened.tokenizer("the dog sees a big cat .", return_tensors="pt")["input_ids"]  # type: ignore[attr-defined]
        found = opened.model(ids, output_hidden_states=True)
    rows = read(tmp_path / "out" / "tokens.csv")
    lengths = column(rows, "length")[:, [0, 3, 6]]
    expected = torch.stack(found.hidden_states[:-1], -1)[0].norm(dim=1).numpy()  # the last one is normalised
    np.testing.assert_allclose(lengths, expected, **{"rtol": 2e-6, "atol": 1e-6})  # as WRITTEN
    words = opened.tokenizer.convert_ids_to_tokens(found.logits[0].argmax(-1).tolist())  # type: ignore[attr-defined]
    assert [row["lens_token"] for row in rows if row["state"] == "9"] == words
    assert f"{rule}; each layer is seen at x_n" in (tmp_path / "out" / "trajectories.html").read_text(encoding="utf-8")

    options = {**chosen, "encoder_normalize_before": True, "decoder_normalize_before": True}
    path = conftest.save_checkpoint(tmp_path / "model.pt", data_folder, **options)
    german, english = write(tmp_path / "de", "ein Mann ."), write(tmp_path / "en", "a man .")
    more = ["--data", str(data_folder), "--target", str(english), "--out", str(tmp_path / "out2")]
    assert main([str(path), "--text", str(german), *more]) == 0
    opened = open_model(path, data_folder, {}, "cpu")
    rows = [row for row in read(tmp_path / "out2" / "tokens.csv") if row["side"] == "decoder"]
    words = opened.hub.task.target_dictionary  # type: ignore[attr-defined]
    with torch.no_grad():
        source = opened.hub.task.source_dictionary.encode_line("ein Mann .", add_if_not_exist=False)  # type: ignore[attr-defined]
        previous = torch.tensor([[int(row["id"]) for row in rows if row["state"] == "0"]])
        logits, extra = opened.model(source.long()[None], torch.tensor([len(source)]), previous)
    assert [row["lens_token"] for row in rows if row["state"] == "8"] == [
        words[n] for n in logits[0].argmax(-1).tolist()
    ]
    expected = torch.stack(extra["inner_states"], -1)[:, 0].norm(dim=1).numpy()  # (T, L + 1)
    np.testing.assert_allclose(column(rows, "length")[:, [0, 4, 8]], expected, **{"rtol": 2e-6, "atol": 1e-6})


def test_layers_that_are_not_in_a_row(refused, tmp_path, monkeypatch) -> None:
    from macaron.dynamics import Step, rules

    def rule(step: Step) -> torch.Tensor:
        return step.layer(2 * step.x)  # begins elsewhere than the last step ended

    monkeypatch.setitem(rules.RULES, "elsewhere", lambda depth, **_: rule)
    folder = conftest.save_bert(tmp_path / "ruled", depth_rule="elsewhere")
    said = refused(folder, "--text", write(tmp_path / "text", "the dog"))
    assert "ruled: it makes other states than its layers do" in said


def test_text_that_is_none(refused, bert_folder: Path, release: Path, tmp_path: Path) -> None:
    text = write(tmp_path / "text", "the dog", "the cat")
    assert "no such file" in refused(bert_folder, "--text", tmp_path / "nowhere")
    assert "no line with anything to be seen" in refused(
        bert_folder, "--text", write(tmp_path / "blank", "", " \u2028 ")
    )
    (tmp_path / "latin").write_bytes("fünf\n".encode("latin-1"))
    assert "not UTF-8 after line 0" in refused(bert_folder, "--text", tmp_path / "latin")
    long = write(tmp_path / "long", "a", "dog " * 130)
    assert "long: line 2 has 132 pieces, and the model takes 128; split or shorten it" in refused(
        bert_folder, "--text", long
    )
    assert "long: line 2 has 390 pieces, and the model takes" in refused(release, "--text", long)
    said = refused(bert_folder, "--text", text, "--target", text)
    assert "is a Macaron BERT, which has no target; leave it out" in said
    assert "leave out --data" in refused(bert_folder, "--text", text, "--data", tmp_path)
    assert "leave out --data" in refused(release, "--text", text, "--source-lang", "de")
    short = write(tmp_path / "short", "a")
    said = refused(release, "--text", text, "--target", short, "--lines", 1)
    assert "short: ends after line 1, but" in said, "lines that are not looked into tell it too"
    blank = write(tmp_path / "blank_target", "a", "")
    assert "blank_target: line 2 is blank, but that of" in refused(release, "--text", text, "--target", blank)
    assert "--device nonsense: not usable here" in refused(bert_folder, "--text", text, "--device", "nonsense")


# --- in a browser -------------------------------------------------------------------------------------------------


def opened(browser: str, place: Path, fragment: str, *options: str, budget: int = 1000) -> str:
    """The page as it stands after `budget` ms of its own time."""
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place.parent}/profile"]
    command += ["--enable-logging=stderr", f"--virtual-time-budget={budget}", *options, "--dump-dom"]
    done = subprocess.run(
        [*command, f"{place.as_uri()}#{fragment}"], capture_output=True, text=True, timeout=180, check=True
    )
    assert ":CONSOLE" not in done.stderr, done.stderr  # an error of the script, or a breach of its policy
    return done.stdout


def places(dom: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle[^>]* cx="([^"]+)" cy="([^"]+)"', dom)]


@pytest.mark.slow
def test_in_a_real_browser(bert_folder: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on the PATH, in which the page would be opened")
    text = write(tmp_path / "text", "the dog sees a big cat .", HOSTILE)
    assert main([str(bert_folder), "--text", str(text), "--out", str(tmp_path / "out")]) == 0
    html_file = tmp_path / "out" / "trajectories.html"
    first, last = (opened(browser, html_file, f"sentence=1&step={step}") for step in (0, 9))
    assert len(places(first)) == len(places(last)) == 9
    assert "the embeddings, before the first layer" in first and "layer 3 of 3, FFN for a step of 0.5" in last
    assert all(math.dist(a, b) > 1 for a, b in zip(places(first), places(last), strict=True)), "all words have moved"
    assert all(0 <= x <= 900 and 0 <= y <= 600 for x, y in places(first) + places(last)), "and are to be seen"
    view = data_of(tmp_path / "out")[0]
    points = np.array(view["planes"]["states"]["points"])[9]
    drawn = np.array(places(last)) * [1, -1]  # down is positive on a screen
    scale = np.linalg.norm(drawn - drawn.mean(0)) / np.linalg.norm(points - points.mean(0))
    np.testing.assert_allclose(drawn - drawn.mean(0), scale * (points - points.mean(0)), atol=0.1)  # of 900 pixels

    labels = re.findall(r"<text[^>]*>([^<]+)</text>", last)
    assert labels[-9:] == ["[CLS]", "the", "dog", "sees", "a", "big", "cat", ".", "[SEP]"]
    chosen = opened(browser, html_file, "sentence=1&step=4&word=3")
    assert '<h3 id="word">dog</h3>' in chosen and chosen.count("word dim") == 8
    assert len(re.findall(r"<tr class=\"now\">", chosen)) == 1
    directions = opened(browser, html_file, "sentence=1&step=9&space=directions")
    assert places(directions) != places(last)
    played = opened(browser, html_file, "sentence=1&play", budget=20_000)
    assert 'data-step="9.00"' in played and "▶ play" in played, "nine substeps take less than twenty seconds"
    halfway = opened(browser, html_file, "sentence=1&play", budget=3_000)
    step = float(re.findall(r'data-step="([\d.]+)"', halfway)[0])
    assert 0 < step < 9 and "pause" in halfway
    hostile = opened(browser, html_file, "sentence=2&step=2")
    assert "<img src" not in hostile and hostile.count("<script") == 2
    for wrong in ("sentence=99&step=-4&word=99", "sentence=x&step=y&word=z", "%00"):
        assert places(opened(browser, html_file, wrong))
    shot = tmp_path / "shot.png"
    opened(browser, html_file, "sentence=1&step=5", f"--screenshot={shot}", "--window-size=1280,1250")
    assert shot.stat().st_size > 20_000
