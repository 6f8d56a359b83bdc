"""The benchmarks through their command line, tiny; and what their figures rest on."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from macaron.decoding import choose_precision
from macaron.particles import ParticleLayer
from recipes.bench import bert, lengths, ops, plot, record
from recipes.bench.__main__ import main
from recipes.bench.loss import LOSSES
from recipes.bench.measure import Contender, Plan, Timing, check_equal, flops, interleaved, peak_mib, product
from recipes.common.errors import RecipeError

CPU = torch.device("cpu")
QUICK = ["--device", "cpu", "--threads", "1", "--clock", "cpu", "--repeats", "1"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def bench(project_root, tmp_path):
    """Run `python -m recipes.bench` as a user does; the rows that it wrote."""

    def run(*arguments: str) -> list[dict[str, str]]:
        out = tmp_path / "results.csv"
        command = [sys.executable, "-m", "recipes.bench", *arguments, *QUICK, "--out", str(out)]
        done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return rows(out)

    return run


def test_bert(bench):
    written = bench("bert", "--size", "tiny", "--batch-size", "2", "--profile")
    assert [(row["case"], row["contender"]) for row in written] == [
        (f"{case} tiny", name) for case in ("forward", "finetune", "mlm") for name in ("transformers", "macaron")
    ]
    for row in written:
        assert float(row["median_ms"]) > 0
        assert float(row["tokens_per_s"]) > 0
        assert int(row["parameters"]) == pytest.approx(4.39e6, rel=0.01)  # BERT-tiny; what `check_equal` calls equal
        assert row["baseline"] == "transformers"
        assert json.loads(row["settings"])["lengths"] == "glue"
        assert row["command"].startswith("python -m recipes.bench bert --size tiny")
        assert row["torch"] == torch.__version__
        assert row["threads"] == "1"
    assert all(float(row["speedup"]) == 1 for row in written if row["contender"] == "transformers")


def test_train(bench):
    sizes = ["--size", "tiny", "--vocabulary", "200", "--max-tokens", "300"]
    theirs, ours = bench("train", *sizes)
    assert (theirs["contender"], ours["contender"], ours["case"]) == ("fairseq", "macaron", "train tiny")
    assert int(theirs["parameters"]) == pytest.approx(int(ours["parameters"]), rel=0.01)  # as `check_equal`
    assert float(ours["peak_mib"]) > 0
    assert 0 < float(ours["share_of_products"]) < 1


def test_decode(bench):
    """A curve, whose first contender is fairseq's generator."""
    sizes = ["--size", "tiny", "--vocabulary", "300", "--beam", "2", "--length", "4"]
    written = bench("decode", *sizes, "--over", "sentences", "--values", "1", "3", "--contenders", "fairseq", "macaron")
    assert [row["case"] for row in written] == ["sentences 1", "sentences 1", "sentences 3", "sentences 3"]
    assert [row["contender"] for row in written] == ["fairseq", "macaron"] * 2
    assert [json.loads(row["settings"])["sentences"] for row in written] == [1, 1, 3, 3]
    assert all(float(row["tokens_per_s"]) > 0 for row in written)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contenders", "fairseq:int8"], "fairseq:int8: fairseq's generator has fp32 alone"),
        (["--contenders", "macaron:int4"], "macaron:int4 unknown; choose from fairseq, macaron,"),
        (["--contenders", "onnxruntime:int8"], "onnxruntime:int8: is exported in fp32 alone"),
        (["--values", "3"], "--values: of what"),
    ],
    ids=str,
)
def test_decode_refuses(options, message, tmp_path, capsys):
    assert main(["decode", *options, "--out", str(tmp_path / "results.csv")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(choose_precision("auto") != "int8", reason="no products of 8-bit numbers on this processor")
def test_deploy(tmp_path, capsys):
    """Sentences a second of what `macaron export` writes, and how far from float32 it is."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from macaron.bert import MacaronBertConfig, MacaronBertForSequenceClassification

    words = {"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}
    made = Tokenizer(models.WordLevel(words, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    folder, text = tmp_path / "model", tmp_path / "text"
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", model_max_length=20).save_pretrained(folder)
    sizes = {"vocab_size": 5, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    MacaronBertForSequenceClassification(MacaronBertConfig(**sizes)).save_pretrained(folder)
    text.write_text("one two\nthree\ntwo two one three\n")
    out = tmp_path / "results.csv"
    options = ["deploy", "--weights", str(folder), "--text", str(text), "--out", str(out), *QUICK]
    assert main([*options, "--batch-size", "2", "--formats", "torch-int8"]) == 0
    assert [row["contender"] for row in rows(out)] == ["torch", "torch-int8"]
    shown = capsys.readouterr().out.splitlines()[-3:]
    assert shown[0].split() == ["format", "output", "difference", "cosine", "sentences_per_s"]
    assert shown[1].split()[:4] == ["torch", "logits", "0.0e+00", "1.0"]
    assert 0 < float(shown[2].split()[2]) < 0.1
    text.write_bytes(b"\xff")
    assert main(options) == 1
    assert "give a file of sentences" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["macaron-compile"], ["macaron-compile", "macaron"]], ids=str)
def test_flops_are_not_counted_within_compiled_layers(names, tmp_path, monkeypatch):
    layers = importlib.import_module("macaron.user_dir.layers")
    ran = []

    def backend(graph, _inputs):
        return lambda *inputs: (ran.append(1), graph.forward(*inputs))[1]

    compiled = torch.compile(ParticleLayer.integrate, dynamic=True, fullgraph=True, backend=backend)
    monkeypatch.setattr(layers, "_compiled", lambda kind: compiled)
    out = tmp_path / "results.csv"
    sizes = ["--size", "tiny", "--vocabulary", "200", "--max-tokens", "300"]
    assert main(["train", *sizes, "--contenders", *names, *QUICK, "--out", str(out)]) == 0
    written = rows(out)
    assert [row["contender"] for row in written] == names
    assert all(bool(row["share_of_products"]) == ("macaron" in names) for row in written)
    assert ran


@pytest.mark.slow
def test_cost_over_length_and_vocabulary(bench, tmp_path):
    """Curves, with a contender of a precision of its own."""
    sizes = ["--size", "tiny", "--max-tokens", "300", "--contenders", "fairseq", "macaron:bf16"]
    written = bench("cost", "--over", "length", "--values", "16", "64", "--vocabulary", "200", *sizes)
    written = bench("cost", "--over", "vocabulary", "--values", "100", "200", *sizes)
    cases = [
        f"{over} {value}" for over, values in (("length", (16, 64)), ("vocabulary", (100, 200))) for value in values
    ]
    assert [row["case"] for row in written] == [case for case in cases for _ in range(2)]
    assert [row["precision"] for row in written] == ["fp32", "bf16"] * 4
    assert [json.loads(row["settings"])["length"] for row in written[::2]] == [16, 64, None, None]
    assert [json.loads(row["settings"])["vocabulary"] for row in written[::2]] == [200, 200, 100, 200]
    assert main(["plot", "--out", str(tmp_path / "results.csv")]) == 0
    assert (tmp_path / "cost_cpu.png").stat().st_size > 20_000


def test_curves_of_other_settings_are_lines_of_their_own(tmp_path, monkeypatch):
    def row(beam, size, name, tokens):
        settings = json.dumps({"beam": beam, "length": 30, "size": size, "vocabulary": None})
        common = {"benchmark": "decode_curves", "GPU": "none", "processor": "x", "torch": "2", "peak_mib": "5"}
        mine = {"case": f"beam {beam}", "contender": name, "precision": name.partition(":")[2] or "fp32"}
        return {**common, **mine, "settings": settings, "tokens_per_s": tokens, "threads": "1", "clock": "cpu"}

    points = [row(beam, size, name, "10") for beam in (8, 1) for size in ("tiny", "base") for name in ("a", "a:int8")]
    drawn = []
    monkeypatch.setattr(plot, "finish", lambda figure, rows, path: drawn.append(figure))
    plot.draw_curves(points, tmp_path / "x.png")
    axis = drawn[0].axes[0]
    assert axis.get_title() == "length 30, threads 1, clock cpu"
    assert {line.get_label() for line in axis.get_lines()} == {
        f"a, {precision}, size {size}" for precision in ("fp32", "int8") for size in ("tiny", "base")
    }
    assert all(line.get_xdata().tolist() == [1, 8] for line in axis.get_lines())
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["1", "8"]
    plot.pyplot().close(drawn[0])


def test_flops_are_those_of_the_products():
    """Of the loss: logits and both gradients; and of the product that is the limit."""
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    target = torch.randint(2, 30, (5,))

    def loss(function) -> int:
        return flops(lambda: function(x, weight, target).backward())

    assert loss(LOSSES["macaron"]) == loss(LOSSES["fairseq"]) == 3 * 2 * 5 * 8 * 30
    run, count = product(6, 4, CPU, torch.float32)
    assert flops(lambda: run(None)) == count == 2 * 6 * 4 * 16


@pytest.mark.gpu
@pytest.mark.parametrize("op", ["step_norm", "linear_cross_entropy"])
def test_liger_computes_the_same(op, monkeypatch):
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    monkeypatch.setattr(ops, "DROPOUT", 0.0)
    case = ops.OPS[op](ops.OpsSettings(tokens=90, dim=64, vocabulary=50), torch.device("cuda"))
    torch.testing.assert_close(
        case.liger(*case.inputs), case.eager(*case.inputs), rtol=1e-4, atol=1e-4
    )  # float32, sums in another order, and products that may be TF32


def test_what_liger_is_asked_for_is_the_same(monkeypatch):
    """Its functions take what torch's of these names take: with torch's in their place, the numbers are eager's."""
    torch_loss = torch.nn.functional.cross_entropy
    stand_in = SimpleNamespace(
        liger_layer_norm=lambda x, weight, bias, eps: torch.nn.functional.layer_norm(
            x, x.shape[-1:], weight, bias, eps
        ),
        liger_fused_linear_cross_entropy=lambda x, weight, target, **rule: torch_loss(x @ weight.t(), target, **rule),
    )
    monkeypatch.setattr(ops, "DROPOUT", 0.0)
    monkeypatch.setattr(ops, "liger_functions", lambda: stand_in)
    for op in ("step_norm", "linear_cross_entropy"):
        case = ops.OPS[op](ops.OpsSettings(tokens=90, dim=64, vocabulary=50), CPU)
        torch.testing.assert_close(
            case.liger(*case.inputs), case.eager(*case.inputs), rtol=1e-5, atol=1e-5
        )  # float32, sums in another order


def test_loss_and_ops_are_appended_and_drawn(tmp_path, capsys):
    out = tmp_path / "folder" / "results.csv"
    small = ["--tokens", "64", "--dim", "64", *QUICK, "--out", str(out)]
    assert main(["loss", "--vocabularies", "300", "500", *small]) == 0
    assert main(["ops", "--vocabulary", "300", "--contenders", "eager", "macaron", *small]) == 0
    written = rows(out)
    assert [row["case"] for row in written if row["benchmark"] == "loss"] == ["V=300"] * 2 + ["V=500"] * 2
    of_ops = [row for row in written if row["benchmark"] == "ops"]
    assert {row["case"] for row in of_ops} == set(ops.OPS)
    assert all(float(row["share_of_copy"]) > 0 for row in of_ops if row["case"] == "step_norm")
    assert main(["plot", "--out", str(out)]) == 0
    assert {path.name for path in out.parent.glob("*.png")} == {"loss_cpu.png", "ops_cpu.png"}
    assert str(out.parent / "loss_cpu.png") in capsys.readouterr().out


@pytest.mark.parametrize("op", ops.OPS)
def test_contenders_compute_the_same(op, monkeypatch):
    monkeypatch.setattr(ops, "DROPOUT", 0.0)
    case = ops.OPS[op](ops.OpsSettings(tokens=900, dim=128, vocabulary=50), CPU)
    found, expected = case.macaron(*case.inputs), case.eager(*case.inputs)
    for other in case.others.values():
        torch.testing.assert_close(found, other(*case.inputs), rtol=1e-5, atol=1e-5)  # as below
    if case.real is not None:
        expected = expected[case.real]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # float32, sums in another order


def test_timing_compares_repeat_by_repeat():
    theirs, ours = Timing({"theirs": [2.0, 4.0, 9.0], "ours": [1.0, 4.0, 3.0]}, work=[10, 20, 30]).rows()
    assert (theirs["median_ms"], ours["median_ms"]) == (4000, 3000)
    assert (ours["speedup_q1"], ours["speedup"], ours["speedup_q3"]) == (1.5, 2.0, 2.5)
    assert ours["tokens_per_s"] == 60 / 8


def test_contenders_take_turns_on_the_same_work():
    seen = []
    contenders = [Contender(name, lambda work, name=name: seen.append((name, work))) for name in "abc"]
    timing = interleaved(contenders, iter(range(10)), Plan(CPU, repeats=3, warmup=1), amount=float)
    assert "".join(name for name, _ in seen) == "abc" + "abc" + "bca" + "cab"
    assert [work for _, work in seen] == [w for w in range(4) for _ in range(3)]
    assert timing.work == [1, 2, 3]
    assert [len(times) for times in timing.seconds.values()] == [3, 3, 3]


def test_time_limit():
    plan = Plan(CPU, repeats=50, seconds=0.0, warmup=0)
    assert len(interleaved([Contender("a", lambda _: None)], iter(range(50)), plan).seconds["a"]) == 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory as Linux does")
def test_peak_memory_is_that_of_the_step():
    def step() -> None:
        torch.ones(64, 2**18)  # 64 MiB, freed at once

    assert peak_mib(step, CPU) == pytest.approx(64, abs=8)  # whole pages, and what else a process takes meanwhile
    assert peak_mib(lambda: None, CPU) < 8


def test_unequal_models_are_not_compared():
    with pytest.raises(RecipeError, match="parameters differ by more than 1%: a 1,000, b 1,020"):
        check_equal([Contender("a", print, 1000), Contender("b", print, 1020)])


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("case", bert.CASES)
def test_bert_models_have_equal_parameters(case, size):
    with torch.device("meta"):
        models = {name: bert.build(name, case, size) for name in bert.CONTENDERS}
    check_equal([Contender(name, print, sum(p.numel() for p in model.parameters())) for name, model in models.items()])


def test_batches_have_the_lengths_of_the_table():
    random = np.random.default_rng(0)
    # the median of 10,000 draws is known to half a percentile, and 5 % are 3 tokens here: five standard deviations
    assert np.percentile(lengths.draw(lengths.GLUE["rte"], 10_000, random), 50) == pytest.approx(55, abs=1.5)
    works = bert.batches(bert.BertSettings(batch_size=16), "mlm", CPU, seed=0)
    for _, work in zip(range(9), works, strict=False):
        ids, mask = work["inputs"]["input_ids"], work["inputs"]["attention_mask"].bool()
        assert ids.size(0) == 16
        assert mask.any(0).all()  # the longest fills its row
        assert work["tokens"] == mask.sum()
        assert not ids[~mask].any()
        labels = work["inputs"]["labels"]
        assert (labels[~mask] == bert.IGNORED).all()
    (fixed, *_) = [next(bert.batches(bert.BertSettings(batch_size=2, lengths="7"), "finetune", CPU, seed=0))]
    assert fixed["inputs"]["attention_mask"].tolist() == [[1] * 7] * 2


def test_lengths_can_be_measured(tmp_path):
    folder = tmp_path / "CoLA"
    folder.mkdir()
    folder.joinpath("train.tsv").write_text("s\t1\t\tthe cat sat\n" * 9 + "s\t0\t*\tcat the the the sat\n")
    table = lengths.measure_glue(tmp_path)["cola"]
    assert (table[0], table[10], table[-1]) == (5, 5, 7)  # words and two special symbols


def test_adversary(tmp_path, capsys):
    out = tmp_path / "results.csv"
    small = ["--dim", "16", "--heads", "2", "--batch-size", "2", "--length", "6", "--layers", "1", "2"]
    names = ["pgd-2", "yopo-2-2", "yopo-full-2-2", "natural"]
    assert main(["adversary", *small, "--contenders", *names, *QUICK, "--out", str(out)]) == 0
    written = rows(out)
    assert [(row["case"], row["contender"]) for row in written] == [
        (f"adversary {depth} layers", name) for depth in (1, 2) for name in names
    ]
    for row in written:
        cosines = json.loads(row["settings"])["cosines"]
        # float32; at δ = 0 the two are one gradient
        assert all(values[0] == pytest.approx(1.0, abs=1e-5) and len(values) == 4 for values in cosines.values())
        assert row["baseline"] == "pgd-2" and float(row["median_ms"]) > 0
    assert "cosine of the gradient with p frozen and the exact one" in capsys.readouterr().out


def test_wrong_requests_are_refused(tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    for arguments, message in [
        (["bert", "--contenders", "roberta"], "--contenders: roberta unknown; choose from transformers, macaron"),
        (["bert", "--lengths", "long"], "--lengths long: give glue, or a number"),
        (["bert", "--clock", "cpu", "--threads", "2"], "use --threads 1 on a CPU"),
        (["ops", "--ops", "softmax"], "--ops: softmax unknown"),
        (["train", "--contenders", "macaron:fp64"], "--contenders: macaron:fp64 unknown; choose from fairseq, macaron"),
        (["train", "--contenders", "macaron-graphs"], "macaron-graphs: --device cpu records no CUDA graphs"),
        (["train", "--size", "tiny", "--vocabulary", "9", "--max-tokens", "64"], "the longest sentence has "),
        (["cost", "--over", "length", "--max-tokens", "64"], "4096 tokens does not fit into --max-tokens 64"),
        (["adversary", "--contenders", "freelb-9"], "--contenders freelb-9: Attack: method='freelb' is unknown"),
        (["adversary", "--dim", "30"], "--dim 30 has to be a multiple of --heads 4"),
        (["loss", "--out", str(other)], "its columns are not those of this benchmark"),
        (["plot", "--out", str(tmp_path / "none.csv")], "no results there; measure something first"),
        (["lengths", "--data-dir", str(tmp_path / "none")], "none"),
    ]:
        assert main([*arguments, *(["--device", "cpu"] if arguments[0] not in ("plot", "lengths") else [])]) == 1
        assert message in capsys.readouterr().err
    assert other.read_text() == "a,b\n1,2\n"


def test_the_record_that_is_kept_can_be_read():
    assert record.read(record.RESULTS)


def test_a_record_that_is_damaged_is_told(tmp_path):
    whole = record.RESULTS.read_bytes().splitlines(keepends=True)[:3]
    for name, content, said in (
        ("cut.csv", b"".join(whole)[:-1], "row 2 is not whole, it was cut off or edited; delete it"),
        ("fewer.csv", whole[0] + b"2026,1\n" + whole[1], "row 1 is not whole"),
        ("more.csv", whole[0] + whole[1].rstrip() + b",1\n" + whole[2], "row 1 is not whole"),
        ("bytes.csv", whole[0] + b"\xff\xfe", r"bytes.csv: cannot be read \('utf-8' codec"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RecipeError, match=said):
            record.read(tmp_path / name)
    with pytest.raises(RecipeError, match=r"cannot be read .*; name another file with --out"):
        record.read(tmp_path)
    assert record.read(tmp_path / "none.csv") == []
