"""Every command and snippet of README.md and docs/ is run or parsed by what it calls; a block of no known kind fails.

Python blocks of a page are executed in order, in one namespace. Commands are given to the very programs that they
start, which get as far as having parsed their arguments; targets of make, requirements of pip and files must exist. A
comment before a block says what it needs: `<!-- test: needs release -->`. Such blocks are run in the slow tier.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = ("text",)  # what a program prints, and pictures of trees
NEEDS = ("run", "release", "MiniLM")  # what a block may need that takes a training or a download


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text, found = page.read_text(encoding="utf-8"), []
    pattern = r"(?:^<!-- test: needs (\S+) -->\n)?^```(\S*)\n(.*?)^```$"
    for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE):
        found.append(Block(page, text[: match.start(2)].count("\n") + 1, match[2], match[3], match[1]))
    assert text.count("```") == 2 * len(found), f"{page}: a block is not closed, or indented"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [page for page in PAGES if any(b.language == "python" and not b.needs for b in BLOCKS if b.page == page)]


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for block in BLOCKS:
        assert block.language in ("python", "bash", "yaml", *NOT_RUN), (
            f"{block}: ```{block.language} is checked by no test"
        )
        assert block.needs in (None, *NEEDS), f"{block}: needs {block.needs}"
    assert len(PYTHON) >= 8
    assert sum(block.language == "bash" for block in BLOCKS) >= 30


# --- Python -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_names: None) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "docs"}
    for block in BLOCKS:
        if block.page == page and block.language == "python" and not block.needs:
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)  # our own text


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page registers is gone after it."""
    from macaron.dynamics import rules, solvers, splitting

    for module, registry in ((splitting, "SPLITTINGS"), (solvers, "SOLVERS"), (rules, "RULES")):
        monkeypatch.setattr(module, registry, dict(getattr(module, registry)))


def test_python_that_needs_more_is_python_and_imports_what_is_there() -> None:
    import ast

    for block in (b for b in BLOCKS if b.language == "python" and b.needs):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("macaron"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names), str(block)


# --- commands -----------------------------------------------------------------------------------------------------


class ParsedError(BaseException):
    """The program has understood its arguments."""


@pytest.fixture
def parsing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], Sequence[str]], None]:
    """Let a program run until its arguments are parsed; what it does not understand fails the test."""
    whole, known = ArgumentParser.parse_args, ArgumentParser.parse_known_args

    def run(program: Callable[[], object], argv: Sequence[str]) -> None:
        depth = 0

        def parse_args(self: ArgumentParser, *arguments: Any, **options: Any) -> None:
            nonlocal depth
            depth += 1
            whole(self, *arguments, **options)
            raise ParsedError

        def parse_known_args(self: ArgumentParser, *arguments: Any, **options: Any) -> Any:
            found = known(self, *arguments, **options)
            if depth == 0 and self.prog == "macaron":  # which takes files after options
                assert not [word for word in found[1] if word.startswith("-") and word != "-"], found[1]
                raise ParsedError
            return found

        said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        with monkeypatch.context() as patch, contextlib.redirect_stderr(said):
            patch.setattr(ArgumentParser, "parse_args", parse_args)
            patch.setattr(ArgumentParser, "parse_known_args", parse_known_args)
            patch.setattr(sys, "argv", list(argv))
            try:
                program()
            except ParsedError:
                return
            except SystemExit as left:
                if left.code == 0 and {"--help", "--version"} & set(argv):
                    return
                text = said.buffer.getvalue().decode()  # type: ignore[attr-defined]
                pytest.fail(f"{shlex.join(argv)} ended with {left.code}: {text[-400:]}")
        pytest.fail(f"{shlex.join(argv)} parsed nothing")

    return run


def commands_of(block: Block) -> list[list[str]]:
    """Its commands, words without redirections; pipes and `&&` divide."""
    commands: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in [*lexer, ";"]:
            if skip:
                skip = False
            elif word in ("<", ">", "2>"):
                skip = True
            elif word in ("|", "&&", ";"):
                commands += [words] if words else []
                words = []
            else:
                words.append(word)
    return commands


def test_commands_are_found_as_a_shell_has_them() -> None:
    block = Block(ROOT, 1, "bash", "# no\na b \\\n  'c d' < x > y\ne $(f g) | h -1 && i  # no\n", None)
    assert commands_of(block) == [["a", "b", "c d"], ["e", "$(f", "g)"], ["h", "-1"], ["i"]]


Parsing = Callable[[Callable[[], object], Sequence[str]], None]


def check(words: list[str], parsing: Parsing) -> None:
    """Fail where the command is not one that this project, or a program that it requires, understands."""
    name, *rest = words
    while re.fullmatch(r"[A-Z_]+=\S*", name):  # PYTHONPATH=.
        name, *rest = rest
    rest = [re.sub(r"^\$[A-Z_]+$", "2", word) for word in rest]  # $WORLD_SIZE
    name = name.removeprefix(".venv/bin/")
    if name == "make":
        check_make(rest)
    elif name == "pip":
        check_pip(rest)
    elif name in ("python", "python3"):
        check_python(rest, parsing)
    elif name == "git":
        assert rest == ["clone", "REPOSITORY", "macaron"], rest
    elif name == "cd":
        assert rest == ["macaron"], rest
    elif name == "bash":
        assert rest[0] == "-c", rest
        check_line(rest[1], parsing)
    elif name == "sbatch":
        check_slurm(rest, parsing)
    elif name == "fairseq-hydra-train":
        check_hydra(rest)
    elif name in ("xz", "head"):
        assert shutil.which(name), name
    else:
        (script,) = importlib.metadata.entry_points(group="console_scripts", name=name) or [None]
        assert script is not None, f"{name} is no program that an extra of this project installs"
        parsing(lambda: script.load()(), [name, *rest])


def check_line(line: str, parsing: Parsing) -> None:
    for words in commands_of(Block(ROOT, 0, "bash", line, None)):
        check(words, parsing)


def check_make(words: Sequence[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        variable, assigned, _ = word.partition("=")
        pattern = rf"^{variable}\s*\?=" if assigned else rf"^{word}:.*##"
        assert re.search(pattern, makefile, re.MULTILINE), f"make {word}: not in the Makefile"


def check_pip(words: Sequence[str]) -> None:
    assert words[0] == "install", words
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    rest = iter(words[1:])
    for word in rest:
        if word == "--index-url":
            assert next(rest) == "https://download.pytorch.org/whl/cpu"
        elif word.startswith("-"):
            assert word in ("--no-deps", "--no-build-isolation"), word
        else:
            wanted = Requirement(word.replace("git+REPOSITORY", "git+https://host/macaron.git"))
            if wanted.name == "macaron-net":
                assert wanted.url and wanted.extras <= set(extras), word
            elif wanted.name == "fairseq-fixed":
                assert word in extras["fairseq"], f"{word}, but pyproject.toml has {extras['fairseq']}"


def check_python(words: list[str], parsing: Parsing) -> None:
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), words[0]
        parsing(lambda: runpy.run_path(str(ROOT / words[0]), run_name="__main__"), words)
        return
    module, *rest = words[1:]
    if module == "torch.distributed.run":
        from torch.distributed.run import get_args_parser

        launched = get_args_parser().parse_args(rest)
        script, arguments = launched.training_script, launched.training_script_args
        check([script, *arguments] if launched.no_python else ["python", "-m", script, *arguments], parsing)
    elif module == "recipes.glue" and rest[:1] not in (["compare"], ["curves"]):
        from recipes.glue.__main__ import parser

        parsing(lambda: parser().parse_args(rest), [module, *rest])  # main() asks for torch's processes first
    else:
        assert importlib.util.find_spec(module), module
        parsing(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), [module, *rest])
    if module == "recipes.compare" and "--" in rest:  # the rest is the recipe's
        recipe = rest[rest.index("--recipe") + 1]
        check_python(["-m", f"recipes.{recipe}", *rest[rest.index("--") + 1 :]], parsing)


def check_slurm(words: list[str], parsing: Parsing) -> None:
    place = next(i for i, word in enumerate(words) if word.endswith(".sbatch"))
    assert (ROOT / words[place]).is_file(), words[place]
    recipe, *rest = words[place + 1 :]
    check(["python", "-m", f"recipes.{recipe}", *rest], parsing)


def check_hydra(words: list[str]) -> None:
    """The configuration is the page's own yaml, see below."""
    assert words[:4] == ["--config-dir", "conf", "--config-name", "train"], words


PROSE = re.compile(r"`((?:python -m recipes|make|macaron|fairseq-\w+) [^`…]*?)`", re.DOTALL)


def test_commands_are_understood_by_what_they_start(
    parsing: Parsing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import macaron

    macaron.register_fairseq()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    wrong = []
    lines = [(str(block), block.text) for block in BLOCKS if block.language == "bash"]
    for page in PAGES:
        for match in PROSE.finditer(page.read_text(encoding="utf-8")):
            lines.append((f"{page.relative_to(ROOT)}, in its text", " ".join(match[1].split())))
    seen: set[str] = set()
    for where, text in lines:
        for words in commands_of(Block(ROOT, 0, "bash", text, None)):
            if words[0] == "macaron" and len(words) == 2 and "text" in where:
                words.append("--help")  # the name of a command alone
            if (line := shlex.join(words)) in seen:
                continue
            seen.add(line)
            try:
                check(words, parsing)
            except (Exception, pytest.fail.Exception) as error:
                wrong.append(f"{where}: {line}\n    {error}")
    assert not wrong, "\n".join(wrong)
    assert len(seen) > 60


@pytest.mark.parametrize(
    "line",
    [
        "make tests",
        "make demo CORPORA=multi30k",
        "pip install 'macaron-net[berts] @ git+REPOSITORY'",
        "pip install fairseq-fixed==0.12.3",
        "python -m recipes.multi30k_de_en --schemes lie",
        "python -m recipes.nothing",
        "python -m recipes.glue --models DIR",
        "macaron translate release --beams 5",
        "fairseq-train data --user-dir macaron --arch macaron_huge",
        "fairseq-generate data --user-dir macaron --pat x",
        "torchtrain x",
        "python docs/figures/nothing.py",
        "python -m torch.distributed.run --nproc_per_node 2 -m recipes.glue --nonsense",
        "sbatch recipes/translation/slurm/train.sbatch nothing",
    ],
)
def test_a_command_that_is_wrong_is_found(
    line: str, parsing: Parsing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks above can fail."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises((Exception, pytest.fail.Exception)):
        check_line(line, parsing)


def test_cheap_commands_run() -> None:
    """Those that change nothing, as a user gives them."""
    import macaron

    programs = Path(sys.executable).parent
    for command, said in (
        ("--version", f"macaron {macaron.__version__}"),
        ("user-dir", str(Path(macaron.__file__).parent)),
    ):
        assert any(f"macaron {command}" in block.text for block in BLOCKS if block.language == "bash")
        done = subprocess.run([programs / "macaron", command], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == said


def test_yaml_is_a_configuration_that_fairseq_takes(tmp_path: Path) -> None:
    """Composed by hydra over fairseq's own defaults: an unknown entry, or one of another type, is an error."""
    import macaron

    macaron.register_fairseq()
    from fairseq.dataclass.configs import FairseqConfig
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
    from omegaconf import OmegaConf

    (block,) = (b for b in BLOCKS if b.language == "yaml")
    given = yaml.safe_load(block.text)
    plain = OmegaConf.structured(FairseqConfig)
    for group in ("optimization", "dataset", "checkpoint"):
        OmegaConf.merge(plain[group], given[group])
    name = given["model"].pop("_name")
    options = MODEL_DATACLASS_REGISTRY[ARCH_MODEL_NAME_REGISTRY.get(name, name)]
    OmegaConf.merge(OmegaConf.structured(options), given["model"])
    with pytest.raises(Exception, match="no_such_entry"):
        OmegaConf.merge(OmegaConf.structured(options), {"no_such_entry": 1})


# --- what the pages say beside ------------------------------------------------------------------------------------


def test_files_that_the_pages_name_exist() -> None:
    pattern = r"`((?:macaron|recipes|tests|user_dir|docs)/[\w./]+\.(?:py|md|sbatch|yaml))`"
    named = {(page, name) for page in PAGES for name in re.findall(pattern, page.read_text(encoding="utf-8"))}
    assert len(named) > 15
    for page, name in named:
        assert (ROOT / name).is_file(), f"{page}: {name}"


def test_names_of_the_code_that_the_pages_give_exist() -> None:
    pattern = r"`(macaron(?:\.\w+)+)`"
    for page in PAGES:
        for name in set(re.findall(pattern, page.read_text(encoding="utf-8"))):
            parts = name.split(".")
            for cut in range(len(parts), 0, -1):
                with contextlib.suppress(ImportError):
                    value: Any = importlib.import_module(".".join(parts[:cut]))
                    break
            for part in parts[cut:]:
                assert hasattr(value, part), f"{page}: {name}"
                value = getattr(value, part)


def test_the_api_pages_hold_all_that_the_packages_export() -> None:
    for package in ("dynamics", "particles", "ops", "bert", "vision", "pde"):
        text = (ROOT / "docs" / "api" / f"{package}.md").read_text(encoding="utf-8")
        shown = {name for names in re.findall(r"members: \[(.*)\]", text) for name in names.split(", ")}
        exported = set(importlib.import_module(f"macaron.{package}").__all__)
        assert exported <= shown, f"{package}: {exported - shown}"


def test_the_address_of_the_repository_stands_in_one_place() -> None:
    """In mkdocs.yml, where the owner fills it in."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    assert yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), loader)["extra"]["repository"] is not None
    assert "[project.urls]" not in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for page in PAGES:
        for address in re.findall(r"git\+(\S+?)\"", page.read_text(encoding="utf-8")):
            assert address == "REPOSITORY", f"{page}: {address}"


def test_the_address_is_put_in_where_it_is_known() -> None:
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    page = 'pip install "macaron-net @ git+REPOSITORY"'
    for address, shown in (("", page), ("https://a/b.git", 'pip install "macaron-net @ git+https://a/b.git"')):
        assert hooks["on_page_markdown"](page, None, {"extra": {"repository": address}}, None) == shown


def test_the_extras_of_the_table_are_those_of_the_package() -> None:
    text = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    table = text[text.index("## What each extra brings") :].partition("\n\n## ")[0]
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    assert set(re.findall(r"^\| `([\w-]+)`", table, re.MULTILINE)) == set(extras)


# --- the pages, built ---------------------------------------------------------------------------------------------


@pytest.mark.slow  # `make docs` builds them in CI, too
def test_the_pages_are_built_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\" >]+)", text)
        loaded += re.findall(r"<link\b(?![^>]*rel=\"?canonical)[^>]*\bhref=\"?([^\" >]+)", text)
        assert loaded and not [address for address in loaded if re.match(r"(https?:)?//", address)], page
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.findall(r"url\(['\"]?https?:|@import", style.read_text(encoding="utf-8")), style


# --- notebooks ----------------------------------------------------------------------------------------------------

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def test_notebooks_are_whole() -> None:
    """Python throughout, run from top to bottom, without an error; what is shown was computed."""
    nbformat = pytest.importorskip("nbformat")
    assert [path.stem for path in NOTEBOOKS] == ["bert_twice_as_fast", "integrator"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert notebook.cells[0].source.startswith("# ")
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), path
        for cell in cells:
            compile(cell.source, str(path), "exec")
            assert not [output for output in cell.outputs if output.output_type == "error"], path


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, client = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(output.get("text") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)


# --- what needs a training ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Path:
    """A folder with README's fairseq commands run in it: data, run; as they stand, but tiny and for four updates."""
    folder = tmp_path_factory.mktemp("docs")
    for path in tiny_corpus.iterdir():
        shutil.copy2(path, folder)
    (block,) = (b for b in BLOCKS if b.page == ROOT / "docs/howto/fairseq.md" and "fairseq-preprocess" in b.text)
    script = block.text.replace("macaron_iwslt_de_en", "macaron_tiny")
    script = script.replace("--save-dir run", "--save-dir run --cpu --max-epoch 5 --max-tokens 400")
    script = script.replace("--beam 5", "--beam 5 --cpu")
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env={**os.environ, "PATH": places, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "BLEU4" in done.stdout
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with release/: the corpus and the command of the tutorial as they stand, but for four updates."""
    folder = tmp_path_factory.mktemp("docs")
    page = [block for block in BLOCKS if block.page == ROOT / "docs/tutorials/corpus.md"]
    (corpus,) = (b.text for b in page if "num2words" in b.text)
    (command,) = (b.text for b in page if "--data-dir numbers --out run" in b.text)
    small = "--max-update 4 --cpu --workers 1 --warmup-updates 2 --average 1 --beam 3 --units 200"
    small += " --set checkpoint.save_interval_updates=2 --valid-pairs 40 --test-pairs 40"
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": places, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    (exported,) = (b.text for b in BLOCKS if "macaron export release --format onnx" in b.text)
    exported = exported.splitlines()[0]  # what a later snippet of that page loads
    training = shlex.split(command.replace("--max-update 600", small))
    for words in (["python", "-c", corpus], training, ["cp", "-r", "run/release", "release"], shlex.split(exported)):
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python" and b.needs in ("run", "release")], ids=str
)
def test_python_that_needs_a_trained_model_runs(
    block: Block, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = request.getfixturevalue({"run": "trained", "release": "released"}[str(block.needs)])
    monkeypatch.chdir(folder)
    exec(compile(block.text, str(block), "exec"), {})  # our own text
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_a_release_translates_by_the_commands_of_the_page(released: Path) -> None:
    (block,) = (b for b in BLOCKS if b.page.name == "deploying.md" and "macaron translate release text.de >" in b.text)
    (released / "text.de").write_text("drei Euro\nam 4. Mai\n", encoding="utf-8")
    subprocess.run(["xz", "-k", "-f", "text.de"], cwd=released, check=True)
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", block.text], cwd=released, env={**os.environ, "PATH": places}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len((released / "text.en").read_text(encoding="utf-8").splitlines()) == 2
    assert len(done.stdout.splitlines()) == 6 + 2  # three for each, then the pipe
