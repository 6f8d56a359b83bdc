from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from recipes.bert_pretrain import examples
from recipes.bert_pretrain.examples import TOKENS, ArrowFile, Document, Documents, Example

CLS, SEP = 2, 3


def stored(folder: Path, documents: Sequence[Document]) -> Documents:
    with ArrowFile(folder / "tokens.arrow", TOKENS) as file:
        for document in documents:
            file.write(*document)
    return Documents(folder / "tokens.arrow")


def random_documents(count: int, seed: int = 0, units: int = 20) -> list[Document]:
    """Each id says where it comes from: 1000 · (document + 1) + position."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        ends = np.cumsum(rng.integers(1, 15, rng.integers(1, units)))
        made.append(Document(1000 * (number + 1) + np.arange(ends[-1]), ends))
    return made


def test_arrow_file_gives_back_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "BUFFER", 100)  # several batches in the file
    documents = random_documents(50)
    found = stored(tmp_path, documents)
    assert len(found) == 50
    for (ids, ends), (ids_, ends_) in zip(documents, found, strict=True):
        assert np.array_equal(ids, ids_) and np.array_equal(ends, ends_)
    rows = examples.mapped(tmp_path / "tokens.arrow")
    assert rows.features == TOKENS and rows[7]["ids"] == documents[7].ids.tolist()


def test_a_failed_writer_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ArrowFile(tmp_path / "x.arrow", TOKENS) as file:
        file.write([1], [1])
        _ = 1 / 0
    assert not (tmp_path / "x.arrow").exists()


def test_packed_examples_are_full_and_lose_nothing(tmp_path: Path) -> None:
    documents = stored(tmp_path, random_documents(30))
    made = list(examples.packed(documents, 32, CLS, SEP))
    assert all(len(example.input_ids) == 32 for example in made[:-1]) and len(made[-1].input_ids) <= 32
    assert all(example.input_ids[0] == CLS and example.input_ids[-1] == SEP for example in made)
    inside = np.concatenate([example.input_ids[1:-1] for example in made])
    assert np.array_equal(inside[inside != SEP], np.concatenate([document.ids for document in documents]))
    assert (inside == SEP).sum() == len(documents) - 1


def parts(example: Example) -> tuple[np.ndarray, np.ndarray]:
    ids, second = example.input_ids, example.second
    assert ids[0] == CLS and ids[second - 1] == SEP and ids[-1] == SEP
    return ids[1 : second - 1], ids[second:-1]


def test_pairs(tmp_path: Path) -> None:
    documents = stored(tmp_path, random_documents(400))
    made = list(examples.pairs(documents, 64, 0.1, 1, CLS, SEP))
    real = [example for example in made if example.is_next == 1]
    assert 0.35 < len(real) / len(made) < 0.6
    covered = set()
    for example in made:
        a, b = parts(example)
        assert len(example.input_ids) <= 64 and len(a) and len(b)
        assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()  # contiguous text
        same = a[0] // 1000 == b[0] // 1000
        assert same == (example.is_next == 1)
        assert not same or b[0] > a[-1]
        covered |= set(a.tolist()) | (set(b.tolist()) if same else set())
    total = sum(len(document.ids) for document in documents)
    assert len(covered) > 0.75 * total  # the rest was cut off, or lay in a shorter example
    again = list(examples.pairs(documents, 64, 0.1, 1, CLS, SEP))
    assert all(np.array_equal(x.input_ids, y.input_ids) for x, y in zip(made, again, strict=True))
    other = list(examples.pairs(documents, 64, 0.1, 2, CLS, SEP))
    assert [len(x.input_ids) for x in other] != [len(x.input_ids) for x in made]


def test_drawn_segments_come_from_all_places_alike(tmp_path: Path) -> None:
    """A long document gives more of them than a short one: each in proportion to its ids."""
    import random

    ends = [np.arange(1, n + 1) for n in (50, 400, 100, 450)]
    documents = stored(tmp_path, [Document(1000 * (n + 1) + np.arange(len(e)), e) for n, e in enumerate(ends)])
    rng = random.Random(1)
    drawn = np.array([examples.elsewhere(documents, 1, 1, rng)[0] for _ in range(6000)])
    shares = [(drawn // 1000 == n + 1).mean() for n in range(4)]
    assert shares[1] == 0  # its own document
    assert np.allclose(shares, [50 / 600, 0, 100 / 600, 450 / 600], atol=0.02)  # 3.5 deviations of 6000 draws
    assert len(np.unique(drawn)) == 600  # each place, the first and the last ones too


@pytest.mark.parametrize(("a", "b", "room"), [(10, 10, 30), (50, 10, 30), (10, 50, 30), (50, 50, 31), (1, 1, 2)])
def test_fitted(a: int, b: int, room: int) -> None:
    import random

    kept = examples.fitted(np.arange(a), np.arange(b), room, random.Random(1))
    assert sum(map(len, kept)) == min(room, a + b)
    assert abs(len(kept[0]) - len(kept[1])) <= 1 or min(a, b) in map(len, kept)


MEMORY = """
import gzip, sys
from pathlib import Path
import numpy as np
from recipes.bert_pretrain import examples, text
from recipes.bert_pretrain.examples import TEXT, TOKENS, EXAMPLES, ArrowFile, Document, Documents

examples.BUFFER = 2**18  # both sizes fill it many times

def held():  # what is not backed by a file, MiB
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024

def watched(rows):
    global peak
    for n, row in enumerate(rows):
        if n % 50 == 0:
            peak = max(peak, held())
        yield row

folder = Path(sys.argv[1])
def run(size):
    "The stages on `size` documents of 20 kB."
    cleaner = text.Cleaner(1, 0.0, 1)
    with gzip.open(folder / "text.gz", "wt", compresslevel=1) as file:
        for n in range(size):
            file.write(f"{n} " + "word " * 4000 + "\\n\\n\\n")
    with ArrowFile(folder / "documents.arrow", TEXT) as file:
        for document in watched(text.documents(text.lines(folder / "text.gz"), 2)):
            if cleaner.split(document):
                file.write(document)
    documents = examples.mapped(folder / "documents.arrow")
    with ArrowFile(folder / "tokens.arrow", TOKENS) as file:
        for rows in watched(documents.iter(batch_size=16)):
            for row in rows["text"]:
                file.write(np.arange(len(row) // 5, dtype=np.int32), np.arange(20, len(row) // 5 + 1, 20))
    tokens = Documents(folder / "tokens.arrow")
    with ArrowFile(folder / "train.arrow", EXAMPLES) as file:
        for example in watched(examples.pairs(tokens, 128, 0.1, 1, 2, 3)):
            file.write(*example)
    rows = examples.mapped(folder / "train.arrow").with_format("numpy")
    for start in watched(range(0, len(rows), 512)):
        rows[range(start, min(start + 512, len(rows)))]

peak = 0
run(750)
small, peak = peak, 0
run(3000)
print(small, peak, (folder / "documents.arrow").stat().st_size / 2**20)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, project_root: Path) -> None:
    """Four times the text, the same memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=project_root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    small, large, corpus = map(float, done.stdout.split())
    assert corpus > 50
    assert large - small < corpus / 2, (
        f"{small:.0f} MiB for a quarter of {corpus:.0f} MiB of text, {large:.0f} MiB for all"
    )
