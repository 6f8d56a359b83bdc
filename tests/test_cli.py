"""The `macaron` command: paths, averaging, conversion, and what it says when something is wrong."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import macaron
from macaron.averaging import average_checkpoints, last_checkpoints
from macaron.checkpoint import load
from macaron.cli import main, run


def state(value: float = 0.0, updates: int = 1, arch: str = "macaron_tiny", **model: torch.Tensor) -> dict:
    """A checkpoint as fairseq lays it out, with the given tensors or two parameters of `value`."""
    return {
        "args": None,
        "cfg": {"model": {"_name": arch, "updates_seen": updates}},
        "model": model or {"w": torch.full((2, 3), value), "b": torch.full((3,), value)},
        "optimizer_history": [{"num_updates": updates}],
        "extra_state": {"train_iterator": {"epoch": updates}, "ema": {"w": torch.zeros(2, 3)}},
        "last_optimizer_state": {"state": {0: torch.zeros(6)}},
    }


@pytest.fixture
def save(tmp_path):
    def save(name: str, content: dict) -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


def fails(arguments: list, capsys) -> str:
    """The message of a command that must fail, on stderr, without a traceback."""
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


# -- user-dir


@pytest.mark.parametrize("command", ["macaron", "macaron.cli"])
def test_user_dir_prints_the_folder_of_the_package(command, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", command, "user-dir"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{Path(macaron.__file__).parent}\n"


def test_what_cannot_be_written_is_one_line_and_not_tried_again(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "macaron", "user-dir"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr == (
        b"macaron user-dir: the disk or the quota is full ([Errno 28] No space left on device); make room, and run the "
        b"same command again\n"
    )


def test_a_reader_that_has_gone_is_told_nothing():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "macaron", "user-dir"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_command_is_installed(tmp_path):
    script = Path(sys.executable).parent / "macaron"
    done = subprocess.run([script, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"macaron {macaron.__version__}\n"


# -- average


def test_average_is_the_mean_and_the_rest_is_of_the_newest(save):
    paths = [
        save("a.pt", state(1.0, updates=30)),
        save("b.pt", state(2.0, updates=10)),
        save("c.pt", state(6.0, 20)),
    ]
    result = average_checkpoints(paths)
    for parameter in result["model"].values():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 3.0), rtol=0, atol=0)
    assert list(result["model"]) == ["w", "b"]
    assert result["cfg"]["model"]["updates_seen"] == 30
    assert result["extra_state"] == {"train_iterator": {"epoch": 30}}
    assert "last_optimizer_state" not in result
    assert result["averaged_from"] == [str(path) for path in paths]


def test_average_of_half_precision_is_summed_in_double_precision(save):
    """2048 + 1 is not a float16, and a sum of 40000s overflows one; their means are."""
    values = [torch.tensor([2048.0, 40000.0]), torch.tensor([2.0, 40000.0])]
    paths = [save(f"{i}.pt", state(w=value.half())) for i, value in enumerate(values)]
    result = average_checkpoints(paths)["model"]["w"]
    assert result.dtype == torch.float16
    assert result.tolist() == [1025.0, 40000.0]


def test_average_keeps_tied_parameters_tied(save):
    paths = []
    for i in range(2):
        shared, column = torch.full((4, 2), float(i)), torch.arange(4.0)
        model = {"enc": shared, "dec": shared, "copy": shared.clone(), "column": column}
        paths.append(save(f"{i}.pt", state(**model)))
    model = average_checkpoints(paths)["model"]
    assert model["enc"].data_ptr() == model["dec"].data_ptr() != model["copy"].data_ptr()
    assert model["enc"].tolist() == model["copy"].tolist() == [[0.5, 0.5]] * 4


def test_average_takes_counters_and_uninitialised_buffers_from_the_newest(save):
    def model(count: int, filler: float) -> dict:
        return {"w": torch.ones(2), "n": torch.tensor(count), "p._float_tensor": torch.tensor([filler])}

    old = save("old.pt", state(updates=1, **model(3, float("nan"))))
    new = save("new.pt", state(updates=2, **model(5, 1.0)))
    result = average_checkpoints([new, old])["model"]
    assert result["n"].item() == 5
    assert result["p._float_tensor"].item() == 1.0


def test_average_does_not_change_a_single_checkpoint(save):
    weights = torch.randn(5, 7)
    assert torch.equal(average_checkpoints([save("a.pt", state(w=weights))])["model"]["w"], weights)


def test_average_reads_namespaces(save):
    content = {**state(1.0), "cfg": None, "args": argparse.Namespace(arch="macaron_tiny")}
    assert average_checkpoints([save("a.pt", content)])["args"].arch == "macaron_tiny"


def test_last_checkpoints_counts_epochs_or_updates_as_numbers(tmp_path):
    names = [
        "checkpoint9.pt",
        "checkpoint10.pt",
        "checkpoint11.pt",
        "checkpoint_1_99.pt",
        "checkpoint_2_100.pt",
    ]
    for name in [*names, "checkpoint_best.pt", "checkpoint_last.pt", "checkpoint12.pt.tmp"]:
        (tmp_path / name).touch()

    def last(n: int, **options) -> list[str]:
        return [path.name for path in last_checkpoints(tmp_path, n, **options)]

    assert last(2) == ["checkpoint10.pt", "checkpoint11.pt"]
    assert last(2, up_to=10) == ["checkpoint9.pt", "checkpoint10.pt"]
    assert last(2, kind="update") == ["checkpoint_1_99.pt", "checkpoint_2_100.pt"]
    with pytest.raises(ValueError, match=r"holds 2 checkpoints checkpoint_<epoch>_<update>\.pt, but --last asks for 3"):
        last(3, kind="update")
    with pytest.raises(ValueError, match=r"holds 1 checkpoints .* up to epoch 9, but --last asks for 2; ask for fewer"):
        last(2, up_to=9)


def test_average_command_writes_one_line_and_one_file(save, tmp_path, capsys):
    for epoch in (1, 2, 3):
        save(f"checkpoint{epoch}.pt", state(float(epoch), updates=epoch))
    output = tmp_path / "out" / "average.pt"
    assert main(["average", "--last", "2", "--dir", str(tmp_path), "--output", str(output)]) == 0
    expected = f"averaged 2 checkpoints (checkpoint2.pt, checkpoint3.pt) into {output}\n"
    assert capsys.readouterr().out == expected
    assert torch.load(output, weights_only=True)["model"]["b"].tolist() == [2.5] * 3
    assert [path.name for path in output.parent.iterdir()] == ["average.pt"]


def test_outputs_are_overwritten_only_with_force(save, tmp_path, capsys):
    a, output = save("a.pt", state(1.0)), save("average.pt", {"precious": True})
    command = ["average", "--inputs", a, "--output", output]
    assert f"--output {output} exists; add --force to overwrite it" in fails(command, capsys)
    assert torch.load(output, weights_only=True) == {"precious": True}
    assert "is a folder; name a file in it" in fails(["average", "--inputs", a, "--output", tmp_path], capsys)
    assert main([*map(str, command), "--force"]) == 0
    assert "model" in torch.load(output, weights_only=True)


def test_an_interrupted_save_leaves_nothing_behind(save, tmp_path, monkeypatch, capsys):
    a, output = save("a.pt", state(1.0)), save("average.pt", {"precious": True})

    def disk_full(content, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", disk_full)
    assert main(["average", "--inputs", str(a), "--output", str(output), "--force"]) == 130
    assert capsys.readouterr().err == "macaron average: interrupted; run the same command again\n"
    assert torch.load(output, weights_only=True) == {"precious": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "average.pt"]


def test_what_a_killed_process_left_is_swept(save, tmp_path):
    killed = subprocess.Popen(["true"])
    killed.wait()
    mine, other = f".average.pt.{killed.pid}.tmp", f".average.pt.{os.getppid()}.tmp"
    for name in (mine, other, ".average.pt.x.tmp", ".other.pt.1.tmp", "average.pt.1.tmp"):
        (tmp_path / name).write_bytes(b"half")
    output = tmp_path / "average.pt"
    assert main(["average", "--inputs", str(save("a.pt", state(1.0))), "--output", str(output)]) == 0
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["a.pt", "average.pt", other, ".average.pt.x.tmp", ".other.pt.1.tmp", "average.pt.1.tmp"])


def test_a_kill_in_the_middle_leaves_nothing_for_long(save, tmp_path):
    a, output = save("a.pt", state(1.0)), tmp_path / "average.pt"
    script = f"""
import os, signal, torch
torch.save = lambda content, path: (open(path, "wb").write(b"half"), os.kill(os.getpid(), signal.SIGKILL))
from macaron.cli import main
main(["average", "--inputs", {str(a)!r}, "--output", {str(output)!r}])
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    assert main(["average", "--inputs", str(a), "--output", str(output)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "average.pt"]


@pytest.mark.parametrize("command", ["average", "convert"])
def test_a_full_disk(command, golden, tmp_path):
    """As the limit of a file's size, which ends the same call in the same way."""
    source = golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt"
    arguments = [
        command,
        *(["--inputs"] if command == "average" else []),
        str(source),
        "--output",
        str(tmp_path / "o.pt"),
    ]
    script = f"""
import resource, sys, torch
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from macaron.cli import main
sys.exit(main({arguments!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1 and str(tmp_path / "o.pt") in done.stderr
    assert "bytes are free" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "message"),
    [
        *[("a.pt/b.pt", "exists"), ("a" * 300, "File name too long"), ("a\0b", "null byte"), (".", "is a folder")],
        ("pipe", "is no ordinary file; name one"),
        ("/proc/o.pt", "/proc/o.pt"),  # read-only, even to root
    ],
)
def test_outputs_that_cannot_be_written(output, message, save, tmp_path, capsys):
    a = save("a.pt", state(1.0))
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    found = fails(["average", "--inputs", a, "--output", tmp_path / output, "--force"], capsys)
    assert message in found and found.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name", ["ü – ö.pt", "a\nb.pt", os.fsdecode(b"\xff.pt"), "-x.pt", "x" * 252 + ".pt", "é" * 126]
)
def test_names_are_any_names(name, save, tmp_path, capsys):
    assert main(["average", "--inputs", str(save("a.pt", state(1.0))), f"--output={tmp_path / name}"]) == 0
    assert "model" in torch.load(tmp_path / name, weights_only=True)


def test_one_line_for_errors_of_every_kind(capsys):
    """Also for those that nobody thought of."""

    def fail(args: argparse.Namespace) -> None:
        raise args.error

    parser = argparse.ArgumentParser(prog="python -m macaron.some")
    parser.add_subparsers(dest="command").add_parser("thing").set_defaults(run=fail)
    for error, line in (
        (ValueError("two\nlines"), "macaron.some thing: two lines\n"),
        (KeyError("a"), "macaron.some thing: unexpected KeyError: 'a'\n"),
        (MemoryError(), "macaron.some thing: unexpected MemoryError:\n"),
        (
            OSError(28, "No space left on device", "f"),
            "macaron.some thing: the disk or the quota is full ([Errno 28] No space left on device: 'f'); make room, "
            "and run the same command again\n",
        ),
    ):
        parser.set_defaults(error=error)
        assert run(parser, ["thing"]) == 1
        assert capsys.readouterr().err == line
    with pytest.raises(SystemExit, match="2"):
        run(parser, ["other"])


OTHERS = {
    "architecture": (
        state(arch="macaron_base"),
        r"b\.pt is of architecture macaron_base but .*a\.pt is of macaron_tiny",
    ),
    "fewer parameters": (state(w=torch.ones(2, 3)), r"parameter b is in .*a\.pt but not in .*b\.pt"),
    "more parameters": (
        state(w=torch.ones(2, 3), b=torch.ones(3), g=torch.ones(1)),
        r"parameter g is in .*b\.pt but not in .*a\.pt",
    ),
    "shape": (
        state(w=torch.ones(2, 4), b=torch.ones(3)),
        r"parameter w has shape \(2, 4\) in .*b\.pt but \(2, 3\) in .*a\.pt",
    ),
    "dtype": (
        state(w=torch.ones(2, 3).half(), b=torch.ones(3)),
        r"parameter w has dtype torch\.float16 in .*b\.pt but torch\.float32 in .*a\.pt",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("updates", [0, 9])
def test_average_refuses_another_model(other, updates, save):
    content, message = OTHERS[other]
    content = {**content, "optimizer_history": [{"num_updates": updates}]}
    with pytest.raises(ValueError, match=message + r".*only checkpoints of one model can be averaged"):
        average_checkpoints([save("a.pt", state()), save("b.pt", content)])


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("splitting", ("strang", "ffn/3 attention ffn/1.5")),
        ("decoder_attention_heads", (2, 4)),
        ("activation_fn", "ab"),
    ],
)
def test_average_refuses_other_options_that_no_shape_shows(option, values, save):
    a, b = ({**state(), "cfg": {"model": {"_name": "macaron_tiny", option: value}}} for value in values)
    with pytest.raises(
        ValueError, match=rf"b\.pt was trained with --{option.replace('_', '-')} {values[1]} but .*a\.pt"
    ):
        average_checkpoints([save("a.pt", a), save("b.pt", b)])
    assert average_checkpoints([save("a.pt", a), save("old.pt", state())])["model"]["w"].shape == (2, 3)


@pytest.mark.parametrize("form", ["sde", "unscaled"])
def test_average_refuses_rates_that_act_in_evaluation(form, save):
    def trained_with(rate: float, form: str) -> dict:
        options = {"_name": "macaron_tiny", "stochastic_depth": rate, "stochastic_depth_form": form}
        return {**state(), "cfg": {"model": options}}

    a, b = save("a.pt", trained_with(0.2, form)), save("b.pt", trained_with(0.5, form))
    with pytest.raises(ValueError, match=r"b\.pt was trained with --stochastic-depth 0\.5 but .*a\.pt with 0\.2; only"):
        average_checkpoints([a, b])
    scaled = [save(f"{rate}.pt", trained_with(rate, "scaled")) for rate in (0.2, 0.5)]  # evaluation is the plain model
    assert average_checkpoints(scaled)["model"]["w"].shape == (2, 3)


def test_average_refuses_other_dictionaries(save):
    """Equal in names and shapes, the embeddings of other words."""

    def trained_with(sums: object) -> dict:
        return {**state(1.0), "task_state": {"macaron_dictionaries": sums}}

    a, b = save("a.pt", trained_with({"encoder": "1"})), save("b.pt", trained_with({"encoder": "2"}))
    with pytest.raises(ValueError, match=r"b\.pt was trained with other dictionaries than .*a\.pt; only"):
        average_checkpoints([a, b])
    assert average_checkpoints([a, save("old.pt", state(1.0))])["model"]["w"].mean() == 1


def test_average_refuses_a_checkpoint_twice_and_a_diverged_one(save):
    a = save("a.pt", state(1.0))
    with pytest.raises(ValueError, match=r"a\.pt is given twice; every checkpoint counts once"):
        average_checkpoints([a, a.parent / "." / "a.pt"])
    with pytest.raises(ValueError, match=r"b\.pt: parameter w is not finite, so the run diverged; leave this one out"):
        average_checkpoints([a, save("b.pt", state(float("nan")))])


def test_average_refuses_what_is_no_model(save):
    with pytest.raises(ValueError, match=r"a\.pt: no model in it \(found model\); a fairseq checkpoint has"):
        average_checkpoints([save("a.pt", {"model": {"w": "text"}})])


@pytest.mark.parametrize("command", [["average", "--inputs"], ["convert"]])
def test_code_in_an_option_is_not_passed_on(command, save, tmp_path, capsys):
    code = "__import__('os').abort()"
    for name, options in (
        ("args.pt", {"cfg": None, "args": argparse.Namespace(adam_betas=code)}),
        ("cfg.pt", {"cfg": {"model": {"adaptive_softmax_cutoff": code}}}),
        ("yaml.pt", {"cfg": f'model: {{adaptive_softmax_cutoff: "{code}"}}'}),
    ):
        bad = save(name, {**state(1.0), **options})
        message = fails([*command, bad, "--output", tmp_path / "out.pt"], capsys)
        assert f"{bad}: refused, because its " in message and message.count("\n") == 1
        assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("options", [{"optimizer_history": 3}, {"optimizer_history": [None]}, {"extra_state": None}])
def test_what_is_missing_beside_the_model_is_no_matter(options, save):
    assert "model" in average_checkpoints([save("a.pt", {**state(1.0), **options})])


def test_an_average_of_the_original_can_be_read(golden, tmp_path):
    """Its meters are objects of classes that are no more."""
    source = golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt"
    assert main(["average", "--inputs", str(source), "--output", str(tmp_path / "average.pt")]) == 0
    assert "train_meters" not in load(tmp_path / "average.pt")["extra_state"]


@pytest.mark.parametrize("command", ["average", "convert"])
def test_unreadable_checkpoints_are_named(command, save, tmp_path, capsys):
    good, output = save("good.pt", state(1.0)), tmp_path / "out.pt"
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(good.read_bytes()[:-200])
    (tmp_path / "empty.pt").touch()
    for bad in (truncated, tmp_path / "empty.pt", tmp_path / "missing.pt", save("other.pt", {"weights": 1})):
        inputs = [bad] if command == "convert" else ["--inputs", good, bad]
        message = fails([command, *inputs, "--output", output], capsys)
        assert message.startswith(f"macaron {command}: ")
        assert str(bad) in message
        assert not output.exists()


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a checkpoint was run')",)


@pytest.mark.parametrize("command", [["average", "--inputs"], ["convert"]])
def test_a_checkpoint_cannot_run_code(command, save, tmp_path, capsys):
    bad = save("bad.pt", {**state(1.0), "extra_state": Malicious()})
    assert str(bad) in fails([*command, bad, "--output", tmp_path / "out.pt"], capsys)


def test_options_that_belong_together(tmp_path, capsys):
    output = tmp_path / "out.pt"
    assert "--last N and --dir DIR go together" in fails(["average", "--last", "2", "--output", output], capsys)
    command = ["average", "--inputs", "a.pt", "--up-to", "3", "--output", output]
    assert "--up-to 3 goes with --last" in fails(command, capsys)
    command = ["average", "--last", "1", "--dir", tmp_path / "no", "--output", output]
    assert "is not a folder; give the folder that fairseq had as --save-dir" in fails(command, capsys)
    with pytest.raises(SystemExit):
        main(["average", "--last", "0", "--dir", ".", "--output", str(output)])
    assert "got '0', expected a whole number of at least 1" in capsys.readouterr().err


def test_average_of_a_real_run_translates(tiny_data_bin, tmp_path, fairseq_cli, capsys):
    """Train, average the last two, translate with the result: the whole way a user goes."""
    here = {"cwd": tmp_path}
    user_dir = f"--user-dir={Path(macaron.__file__).parent}"
    train = "--arch macaron_tiny --cpu --optimizer adam --lr 1e-2 --max-tokens 100 --max-update 3"
    save = "--save-interval-updates 1 --save-dir run"
    fairseq_cli("fairseq-train", tiny_data_bin, user_dir, *train.split(), *save.split(), **here)
    command = ["average", "--last", "2", "--kind", "update", "--dir", str(tmp_path / "run")]
    assert main([*command, "--output", str(tmp_path / "average.pt")]) == 0
    assert "checkpoint_1_2.pt, checkpoint_1_3.pt" in capsys.readouterr().out
    # Unless told otherwise, fairseq leaves out the last batch when its size is no multiple of 8.
    generate = "--path average.pt --cpu --beam 2 --max-len-b 10 --required-batch-size-multiple 1"
    done = fairseq_cli("fairseq-generate", tiny_data_bin, user_dir, *generate.split(), **here)
    assert "Translated 12 sentences" in done.stdout


# -- convert


def test_convert_of_the_original(golden, tmp_path, capsys):
    source = golden / "translation" / "iwslt_macaron_v2"
    output = tmp_path / "converted.pt"
    assert main(["convert", str(source / "checkpoint.pt"), "--output", str(output)]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"converted {source / 'checkpoint.pt'} (arch transformer_iwslt_de_en_macaron_v2, ")
    assert line.count("\n") == 1
    count = json.loads((source / "meta.json").read_text(encoding="utf-8"))["num_params"]
    assert f"{count:,} parameters" in line
    message = fails(["convert", source / "checkpoint.pt", "--output", output], capsys)
    assert "exists; add --force to overwrite it" in message


@pytest.mark.parametrize(
    "model",
    [
        *({}, [], None, {1: torch.ones(1)}, {"w": 1}),
        *({name: torch.ones(4)} for name in ("fc1", "decoder.layers.0.fc1", "decoder.layers.0.foo_layer_norm.weight")),
        *({f"decoder.layers.0.{name}": torch.ones(4, 2)} for name in ("self_attn.q_proj.weight", "layer_norms.7.bias")),
        {"decoder.layers.0.self_attn.in_proj_weight": torch.tensor(1.0)},
    ],
)
def test_convert_of_an_odd_model(model, save, tmp_path, capsys):
    message = fails(["convert", save("odd.pt", {"model": model}), "--output", tmp_path / "o.pt"], capsys)
    assert message.count("\n") == 1 and "unexpected" not in message
    assert not (tmp_path / "o.pt").exists()


@pytest.mark.parametrize(
    "odd",
    [
        *({"extra_state": other} for other in (None, [], 3)),
        *({"last_optimizer_state": other} for other in ([1], {"state": {0: 1}}, {"state": [1], "param_groups": 3})),
        *({"args": None}, {"optimizer_history": 3}),
    ],
)
def test_convert_takes_the_model_of_a_file_that_is_odd_otherwise(odd, golden, save, tmp_path):
    content = load(golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt")
    del content["extra_state"]["train_meters"]
    assert main(["convert", str(save("odd.pt", {**content, **odd})), "--output", str(tmp_path / "o.pt")]) == 0
    kept = load(tmp_path / "o.pt").get("last_optimizer_state")
    assert bool(kept) == ("last_optimizer_state" not in odd)


def test_the_output_of_a_link_is_where_it_points(golden, tmp_path, capsys):
    """Also where nothing is there yet; what is there is not overwritten without --force."""
    source = golden / "translation" / "iwslt_macaron_v2" / "checkpoint.pt"
    link, target = tmp_path / "link.pt", tmp_path / "elsewhere" / "model.pt"
    link.symlink_to(target)
    assert main(["convert", str(source), "--output", str(link)]) == 0
    assert link.is_symlink() and not target.is_symlink() and load(target)["model"]
    capsys.readouterr()
    assert "exists; add --force" in fails(["convert", source, "--output", link], capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, but a fairseq checkpoint has an entry 'model'"),
        ({"state": {}, "param_groups": []}, "holds entries state, param_groups, but a fairseq checkpoint"),
        ({"model": {"encoder": {"w": torch.ones(2)}}}, "no model in it"),
        ({"model": {"decoder.sentence_encoder.layers.0.fc1.weight": torch.ones(2, 2)}}, "not a translation checkpoint"),
        ({"model": {"encoder.sentence_encoder.layers.0.fc1.weight": torch.ones(2, 2)}}, "not a translation checkpoint"),
        (
            {"model": {"encoder.layers.0.fc1.weight": torch.ones(2, 2), "embed_out": torch.ones(2, 2)}},
            "add --dict FILE",
        ),
    ],
    ids=str,
)
def test_convert_of_other_kinds(content, message, save, tmp_path, capsys):
    """A list, an optimiser's state, nested tables, RoBERTa's names of two ages, half a BERT."""
    path = save("other.pt", content)
    said = fails(["convert", path, "--output", tmp_path / "o"], capsys)
    assert message in said and str(path) in said and said.count("\n") == 1
    assert not (tmp_path / "o").exists()


# -- export-hub


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "{", "", "[" * 100_000, "\udcff"])
def test_json_of_another_shape(part, content, tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / part).write_text(content, encoding="utf-8", errors="surrogateescape")
    message = fails(["export-hub", tmp_path / "model", "--output", tmp_path / "hub"], capsys)
    assert str(tmp_path / "model" / part) in message and message.count("\n") == 1
    assert not (tmp_path / "hub").exists()


def test_export_hub(tmp_path, capsys):
    from macaron.bert import MacaronBertConfig, MacaronBertModel

    config = MacaronBertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    MacaronBertModel(config).save_pretrained(tmp_path / "model")
    output = tmp_path / "hub"
    command = ["export-hub", str(tmp_path / "model"), "--output", str(output)]
    assert main(command) == 0
    assert f"exported {tmp_path / 'model'} into {output}; load it with from_pretrained(" in capsys.readouterr().out
    assert (output / "modeling_macaron_bert.py").exists()
    assert "exists; add --force to replace it" in fails(command, capsys)
    assert main([*command, "--force"]) == 0
    capsys.readouterr()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    command = ["export-hub", str(tmp_path / "other"), "--output", str(tmp_path / "no")]
    assert "holds a model of type 'bert', not 'macaron_bert'" in fails(command, capsys)
    assert "macaron export-hub: " in fails(["export-hub", str(tmp_path / "gone"), "--output", "no"], capsys)
