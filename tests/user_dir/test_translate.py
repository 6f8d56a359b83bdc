"""`macaron translate`: lines in, lines out, through the command line; what is not text; long input and early ends."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from macaron.user_dir import translate as filters

from macaron import MacaronModel
from macaron.cli import main


@pytest.fixture(scope="module")
def model(release: Path) -> Any:
    return MacaronModel.from_pretrained(release)


@pytest.fixture(scope="module")
def texts(tiny_corpus: Path) -> list[str]:
    return (tiny_corpus / "test.de").read_text(encoding="utf-8").splitlines()


@pytest.fixture(autouse=True)
def logs() -> Iterator[None]:
    """The command silences fairseq, for its own process."""
    level = logging.getLogger("fairseq").level
    yield
    logging.getLogger("fairseq").setLevel(level)


@pytest.fixture
def command(release: Path, tmp_path: Path, capsysbinary: Any) -> Any:
    """`command("--beam", 3, text=…)`: what a run on a file of this content prints, as lines."""

    def run(*options: object, text: bytes | str) -> list[str]:
        path = tmp_path / "text"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        assert main(["translate", *map(str, options), str(release), str(path)]) == 0
        out, err = capsysbinary.readouterr()
        assert err == b"" and (out == b"" or out.endswith(b"\n"))
        return out.decode().split("\n")[:-1]

    return run


@pytest.fixture
def failing(release: Path, capsysbinary: Any) -> Any:
    """`failing("--beam", 3, file)`: (what was printed, the message) of a run that must fail."""

    def run(*options: object, model: Path = release) -> tuple[list[str], str]:
        assert main(["translate", str(model), *map(str, options)]) == 1
        out, err = capsysbinary.readouterr()
        assert err.startswith(b"macaron translate: ") and err.count(b"\n") == 1 and b": unexpected " not in err
        return out.decode().split("\n")[:-1], err.decode()

    return run


# --- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--buffer-size", 1], ["--buffer-size", 5, "--max-tokens", 20]], ids=str)
def test_it_is_what_the_model_says_line_by_line_in_order(command, model, texts, options) -> None:
    lines = ["", *texts, "  ", *texts[::-1], "\u200b"]
    expected = model.translate(lines)
    assert len(set(expected)) > 8, "or their order would not show"
    assert command(*options, text="\n".join(lines) + "\n") == expected


@pytest.mark.parametrize("text", ["", "\n", "\n\n", "\r\n\n\t\n"])
def test_nothing_stays_nothing(command, text) -> None:
    assert command(text=text) == [""] * text.count("\n")


def test_only_lf_ends_a_line(command, model, texts) -> None:
    inside = "\u2028\x85\x0b\x0c\r\x1c"
    lines = [inside.join(texts[:2]), texts[2] + "\r", texts[3]]
    text = "\n".join(["\ufeff" + lines[0], lines[1] + "\r", lines[2]])  # CR LF, and no end of the last line
    assert command(text=text) == model.translate([" ".join(texts[:2]), texts[2], texts[3]])


def test_files_follow_each_other(release, model, texts, tmp_path, capsysbinary) -> None:
    for name, content in (("a", texts[0]), ("b", ""), ("c", "\ufeff" + texts[1] + "\n")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert main(["translate", str(release), *(str(tmp_path / name) for name in "abca")]) == 0
    assert capsysbinary.readouterr().out.decode().splitlines() == model.translate([texts[0], texts[1], texts[0]])


def test_beam_nbest_and_scores(command, model, texts) -> None:
    rows = command("--beam", 3, "--nbest", 2, "--print-scores", text=f"{texts[0]}\n\n{texts[1]}\n")
    found = model.generate([model.encode(text) for text in texts[:2]], **{**model.generation, "beam": 3})
    hypotheses = [one for best in found for one in best[:2]]
    scores, translations = zip(*(row.split("\t") for row in rows), strict=True)
    assert list(translations[2:4]) == ["", ""] and list(scores[2:4]) == ["0.0000", "0.0000"]
    assert [*translations[:2], *translations[4:]] == [model.decode(one["tokens"]) for one in hypotheses]
    # four digits are written, and a batch of another shape rounds otherwise
    expected = [float(one["score"]) / math.log(2) for one in hypotheses]
    assert list(map(float, [*scores[:2], *scores[4:]])) == pytest.approx(expected, abs=1e-4)
    assert scores[0] != scores[1]
    assert command("--beam", 1, text=texts[0]) == [model.translate(texts[0], beam=1)]


def test_a_terminal_sees_the_progress(command, release, texts, tmp_path, monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    (tmp_path / "text").write_text("\n".join(texts), encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Terminal())
        assert main(["translate", str(release), str(tmp_path / "text")]) == 0
        assert "12/12" in sys.stderr.getvalue()


# --- lines that are too long --------------------------------------------------------------------------------------

LONG = ["Ab " * 250 + "ab.", "Um " * 260 + "um!", "In " * 450 + "in?"]  # of one to two tokens a word


def test_a_line_that_is_too_long_is_refused_with_its_number(failing, model, texts, tmp_path) -> None:
    path = tmp_path / "text"
    path.write_text("\n".join([texts[0], "", " ".join(LONG), texts[1]]), encoding="utf-8")
    out, err = failing(path)
    assert out == model.translate([texts[0], ""]), "what stands before it is not lost"
    assert f"{path}, line 3: has 1," in err and "the model takes 1,024; split it, or add --too-long split" in err


def test_a_line_that_is_too_long_is_split_at_sentence_ends(command, model, texts) -> None:
    assert all(model.encode(one).numel() <= 1024 for one in LONG)
    short = "Ab. In um."
    rows = command("--too-long", "split", "--print-scores", text=f"{short}\n{' '.join(LONG)}\n{texts[0]}\n")
    scores, translations = zip(*(row.split("\t") for row in rows), strict=True)
    assert list(translations) == [model.translate(short), " ".join(model.translate(LONG)), model.translate(texts[0])]
    best = [found[0] for found in model.generate([model.encode(one) for one in LONG], **model.generation)]
    bits = -sum(one["positional_scores"].sum().item() for one in best) / math.log(2)
    # lenpen is 1, so the score is the mean over all tokens; digits as above
    assert float(scores[1]) == pytest.approx(-bits / sum(len(one["tokens"]) for one in best), abs=1e-4)


def test_a_sentence_that_is_too_long_is_refused_by_its_number(failing, tmp_path) -> None:
    (tmp_path / "text").write_text(f"{LONG[0]} In {'ab ' * 1500}\n", encoding="utf-8")
    _, err = failing("--too-long=split", tmp_path / "text")
    assert "line 1: sentence 2 of 2 has " in err and "split it by hand" in err


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Er kam. Sie ging! Warum? „Nein.“ Doch … Ja", ["Er kam.", "Sie ging!", "Warum?", "„Nein.“", "Doch …", "Ja"]),
        ("Dr. Meier und J. S. Bach am 3. Mai. Gut.", ["Dr. Meier und J. S. Bach am 3. Mai.", "Gut."]),
        ("Siehe Nr. 5 dort. Ende Nr. Wieder", ["Siehe Nr. 5 dort.", "Ende Nr. Wieder"]),
        ("um z. B. 3,5 v. H. und usw. klein", ["um z. B. 3,5 v. H. und usw. klein"]),
        ("Ein Satz ohne Ende", ["Ein Satz ohne Ende"]),
        ("第一。第二！第三？", ["第一。", "第二！", "第三？"]),
        ("第一。? B", ["第一。", "?", "B"]),
        ("A.  \u2028 B", ["A.  \u2028 B"]),
        ("Er (sie). (Sie.) 12 kamen.", ["Er (sie).", "(Sie.)", "12 kamen."]),
    ],
)
def test_where_sentences_end(text, parts) -> None:
    assert filters.sentences(text, "de") == parts


@pytest.mark.parametrize("text", ['"' * 50_000, "." + "»" * 50_000 + "a", "J. S. " * 5_000, ". " + " " * 50_000])
def test_marks_without_end_take_no_time(text) -> None:
    """Looking back over all of them at each one, 50,000 took minutes."""
    started = time.process_time()
    assert " ".join(filters.sentences(text, "en")).split() == text.split()
    assert time.process_time() - started < 5


def test_abbreviations_are_those_of_the_language() -> None:
    assert filters.sentences("See Mr. Smith. Go", "en") == ["See Mr. Smith.", "Go"]
    assert filters.sentences("Part. 2 and No. 5. No. Yes", "en") == ["Part.", "2 and No. 5.", "No.", "Yes"]


# --- what is not text ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\ncaf\xe9\n", r", line 2: is not UTF-8 (unexpected end of data at byte 4); convert the text"),
        (b"ab\n\xed\xa0\x80\n", ", line 2: is not UTF-8 (invalid continuation byte at byte 1)"),
        (b"ab\na\0b\n", ", line 2: has a NUL character, so it is UTF-16, or damaged"),
        (b"ab\n" + b"a" * (filters.LONGEST + 1), ", line 2: has over 1,048,576 bytes, as no line of text has"),
    ],
)
def test_a_line_that_is_no_text_ends_it_with_its_number(failing, model, content, message, tmp_path) -> None:
    (tmp_path / "text").write_bytes(content)
    out, err = failing(tmp_path / "text")
    assert out == [model.translate("ab")] and f"{tmp_path / 'text'}{message}" in err


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x1f\x8b\x08", "gzip does, not as text; give what `gzip -dc` makes of it"),
        (b"\xfd7zXZ\0\n", "xz does"),
        (b"BZh9", "bzip2 does"),
        (b"\x28\xb5\x2f\xfd", "zstd does"),
        (b"PK\x03\x04", "zip does"),
        ("ab\n".encode("utf-16"), "UTF-16 does, not as text; give what `iconv -f UTF-16 -t UTF-8` makes"),
    ],
)
def test_packed_files_and_other_encodings(failing, content, kind, tmp_path) -> None:
    (tmp_path / "text").write_bytes(content)
    out, err = failing(tmp_path / "text")
    assert out == [] and f"text, line 1: begins as {kind}" in err


def test_files_that_cannot_be_read_are_known_before_the_first_line(failing, tmp_path) -> None:
    (tmp_path / "text").write_text("ab\n")
    for path, message in (
        (tmp_path / "absent", "absent: cannot be read (No such file or directory); correct the path"),
        (tmp_path, "is a folder; give the files in it"),
        ("\0", "has a null byte in its name"),
    ):
        out, err = failing(tmp_path / "text", path)
        assert out == [] and message in err


def test_a_file_that_is_the_output_too(release, tmp_path, capsys) -> None:
    path = tmp_path / "text"
    path.write_text("ab\n")
    kept = os.dup(1)
    with path.open("a") as out:
        os.dup2(out.fileno(), 1)
    try:
        assert main(["translate", str(release), str(path)]) == 1
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert "text: is where the translations go, too; write them to another file" in capsys.readouterr().err
    assert path.read_text() == "ab\n"


# --- the model ----------------------------------------------------------------------------------------------------


def test_what_is_no_release(failing, release, tmp_path) -> None:
    damaged = Path(shutil.copytree(release, tmp_path / "damaged"))
    content = bytearray((damaged / "model.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / "model.pt").write_bytes(content)
    (tmp_path / "text").write_text("ab\n")
    Path(shutil.copytree(release, tmp_path / "bare") / "text.json").unlink()
    (tmp_path / "bare" / "SHA256SUMS").unlink()
    (tmp_path / "run" / "release").mkdir(parents=True)
    shutil.copy(release / "text.json", tmp_path / "run" / "release")
    for place, message in (
        (damaged, "model.pt is not what was released, by the sums in SHA256SUMS; copy the folder again"),
        (tmp_path / "absent", "there is no such folder"),
        (release / "model.pt", "model.pt: is a file; give the folder of a released model"),
        (tmp_path / "bare", "is no released model, as there is no text.json in it, which says how text becomes pieces"),
        (tmp_path / "run", f"is the folder of a run; its released model is {tmp_path / 'run' / 'release'}"),
    ):
        out, err = failing(tmp_path / "text", model=place)
        assert out == [] and message in err


def test_options_that_cannot_be(failing, tmp_path) -> None:
    (tmp_path / "text").write_text("ab\n")
    for options, message in (
        (["--nbest=3"], "--nbest 3: a beam of 2 has no more than 2 translations; raise --beam"),
        (["--nbest=2", "--too-long=split"], "--nbest 2 with --too-long split: a line of several sentences"),
        (["--device=nonsense"], "--device nonsense: cannot be used here"),
        (["--device=meta"], "--device meta: cannot be used here"),
    ):
        out, err = failing(*options, tmp_path / "text")
        assert out == [] and message in err
    for arguments in (["model", "--beam=0"], ["model", "text", "--bem=3"], ["model", "--beam", "3", "text", "-x"], []):
        with pytest.raises(SystemExit) as ended:
            main(["translate", *arguments])
        assert ended.value.code == 2


# --- input without end --------------------------------------------------------------------------------------------


class Output(io.BytesIO):
    """Counts the lines that it gets."""

    lines = 0

    def write(self, content: Any) -> int:
        self.lines += content.count(b"\n")
        return super().write(content)


@pytest.mark.parametrize(
    ("count", "width", "ahead"), [(20_000, 0, filters.WINDOW), (200, 300_000, filters.WINDOW_BYTES // 300_000 + 1)]
)
def test_what_is_read_ahead_is_bounded(release, texts, count, width, ahead) -> None:
    """In lines where they are short, in bytes where they are long. One in twenty has text, to be quick."""
    output, most, read = Output(), 0, 0

    def lines() -> Iterator[filters.Line]:
        nonlocal most, read
        for number in range(count):
            read += 1
            most = max(most, read - output.lines)
            text = texts[number // 20 % 12] if number % 20 == 0 else ""
            yield filters.Line(f"line {number + 1}", text + " " * width, len(text) + width + 1)

    model = filters.open_model(release, "cpu")
    assert filters.translate(lines(), output, filters.Filter(model, beam=1)) == count
    assert output.lines == count and most == ahead
    rows = output.getvalue().decode().split("\n")[:-1]
    assert rows[:240:20] == model.translate(texts, beam=1)[: count // 20]
    assert not any(row for number, row in enumerate(rows) if number % 20)


@pytest.fixture
def process(release: Path) -> Iterator[Any]:
    """The command in a process of its own, on a pipe into which lines go for ever, one in twenty with text."""
    command = [sys.executable, "-m", "macaron", "translate", str(release), "--beam=1"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, cwd=release.parent) as started:
        stop = threading.Event()

        def feed() -> None:
            try:
                while not stop.is_set():
                    started.stdin.write(b"ab\n" + b"\n" * 19)
            except OSError:  # it has ended
                pass

        thread = threading.Thread(target=feed, daemon=True)
        thread.start()
        yield started
        stop.set()
        started.kill()
        thread.join()
        with contextlib.suppress(OSError):
            started.stdin.close()


def test_an_interruption_says_what_is_done(process, model) -> None:
    """Windows are written while input still comes."""
    rows = [process.stdout.readline() for _ in range(filters.WINDOW + 1)]
    assert {row.decode() for row in rows[::20]} == {model.translate("ab", beam=1) + "\n"}
    assert {row for number, row in enumerate(rows) if number % 20} == {b"\n"}
    drained = threading.Thread(target=process.stdout.read)
    process.send_signal(signal.SIGINT)
    drained.start()
    assert process.wait(60) == 130
    drained.join()
    said = process.stderr.read().decode()
    assert said.startswith("macaron translate: interrupted; the first ") and said.count("\n") == 1
    assert int(said.split()[5].replace(",", "")) % filters.WINDOW == 0


def test_a_reader_that_has_seen_enough(process) -> None:
    """`| head -n 1`"""
    assert process.stdout.readline().strip()
    process.stdout.close()
    assert process.wait(60) == 1 and process.stderr.read() == b""
