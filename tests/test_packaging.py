"""The built package: what is in it, and that it trains where nothing else of this project is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from importlib.metadata import files
from pathlib import Path

import pytest

import macaron

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

SITE = Path(sysconfig.get_paths()["platlib"])


def run(*command: object, cwd: Path) -> str:
    """Output of a command that sees neither this test's import path nor its own user's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package: its path in the wheel -> its path in the tree."""
    found = {f"macaron/{path.relative_to(root / 'macaron')}": path for path in (root / "macaron").rglob("*.py")}
    for folder in ("user_dir", "recipes"):
        for path in (root / folder).rglob("*.py"):
            found[f"macaron/{path.relative_to(root)}"] = path
    return found


def copy_of_tree(project_root: Path, copy: Path) -> Path:
    """The clone without environments and outputs of recipes."""
    copy.mkdir(exist_ok=True)
    for path in project_root.iterdir():
        if path.name in ("macaron", "user_dir", "recipes", "tests", "docs"):
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy2(path, copy)
    return copy


@pytest.fixture(scope="module")
def dist(project_root, tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel, the wheel built from the sdist, from a copy of the tree."""
    copy = copy_of_tree(project_root, tmp_path_factory.mktemp("source"))
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    return out


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


def test_package_list_is_that_of_the_tree(project_root):
    """The list in pyproject.toml is written by hand; what is missing there is missing in the wheel."""
    with open(project_root / "pyproject.toml", "rb") as file:
        listed = tomllib.load(file)["tool"]["setuptools"]["packages"]
    expected = sorted({name.rpartition("/")[0].replace("/", ".") for name in modules(project_root)})
    assert sorted(listed) == expected, "make [tool.setuptools] packages in pyproject.toml equal to the folders"


def test_every_folder_of_modules_is_a_package(project_root):
    folders = {path.parent for path in modules(project_root).values()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_wheel_holds_every_module_and_nothing_else(wheel, project_root):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if name.endswith(".py")} == set(modules(project_root))
    info = f"macaron_net-{macaron.__version__}.dist-info/"
    assert {name.split("/")[0] + "/" for name in names} == {"macaron/", info}
    assert {"macaron/py.typed", f"{info}licenses/LICENSE"} <= set(names)
    data = {name for name in names if name.startswith("macaron/") and not name.endswith((".py", "/py.typed"))}
    for suffix in (".yaml", ".html"):
        folders = (project_root / name for name in ("macaron", "user_dir", "recipes"))
        in_tree = [path.name for folder in folders for path in folder.rglob("*" + suffix)]
        assert sorted(Path(name).name for name in data if name.endswith(suffix)) == sorted(in_tree)


def test_sdist_holds_the_source_and_the_tests(dist, project_root):
    (path,) = dist.glob("*.tar.gz")
    top = f"macaron_net-{macaron.__version__}/"
    with tarfile.open(path) as archive:
        names = {name.removeprefix(top) for name in archive.getnames()}
    assert {str(path.relative_to(project_root)) for path in modules(project_root).values()} <= names
    assert {"pyproject.toml", "build_backend.py", "LICENSE", "CHANGELOG.md", "CITATION.cff"} <= names
    assert {"tests/test_packaging.py", "docs/index.md", "docs/figures/schemes.png", "mkdocs.yml"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pt", ".so"))]


def test_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    info = f"macaron_net-{macaron.__version__}.dist-info"
    metadata = message_from_bytes(archive.read(f"{info}/METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("macaron-net", macaron.__version__)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {line.split(">")[0].split("<")[0] for line in required} == {"torch", "numpy"}
    assert set(metadata.get_all("Provides-Extra")) == {
        "fairseq",
        "fairseq-text",
        "bert",
        "kernels",
        "recipes",
        "images",
        "bm3d",
        "export",
        "seq2seq",
        "ctranslate2",
        "dev",
        "docs",
    }
    assert b"macaron = macaron.cli:main" in archive.read(f"{info}/entry_points.txt")


def test_an_index_would_take_the_metadata(dist):
    """README renders, and no field is wrong."""
    pytest.importorskip("twine")
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(dist.iterdir()), cwd=dist)


def test_what_the_metadata_claims_of_python_is_what_is_tested(wheel, project_root):
    text = zipfile.ZipFile(wheel).read(f"macaron_net-{macaron.__version__}.dist-info/METADATA").decode()
    claimed = re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)$", text, re.MULTILINE)
    runs = (project_root / "tests" / "runs.py").read_text(encoding="utf-8")
    assert re.search(r"^PYTHONS = \((.*)\)$", runs, re.MULTILINE)[1].replace('"', "").split(", ") == claimed
    assert "\nProject-URL:" not in text and "example" not in text.partition("\n\n")[0]  # no placeholder


def test_versions_agree(project_root):
    assert f"version: {macaron.__version__}\n" in (project_root / "CITATION.cff").read_text(encoding="utf-8")


def install_fairseq(python: Path, site: Path) -> None:
    """fairseq beside macaron: from the wheel that `make install` keeps, else copied from this environment."""
    wheels = sorted((Path(sys.prefix) / "wheels").glob("fairseq_fixed-*.whl"))
    if wheels:
        pip(python, "install", "--no-index", "--no-deps", wheels[-1])
        return
    for name in {Path(str(file)).parts[0] for file in files("fairseq-fixed") or ()} - {"..", "__pycache__"}:
        copy = shutil.copytree if (SITE / name).is_dir() else shutil.copy2
        copy(SITE / name, site / name)


def environment_with(home: Path, *what: object, fairseq: bool = True) -> Path:
    """The Python of a new environment with fairseq and what pip is told to install; ours lends the requirements."""
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = site_of(python)
    if fairseq:
        install_fairseq(python, site)
    # Python ignores the .pth files of a folder that a .pth file names, so an editable macaron stays behind.
    (site / "lent.pth").write_text(f"{SITE}\n", encoding="utf-8")
    pip(python, "install", *OFFLINE, *what)
    return python


OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall")


def site_of(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['platlib'])"
    return Path(run(python, "-c", code, cwd=python.parent).strip())


def pip(python: Path, *arguments: object) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "--quiet", *arguments, cwd=python.parent)


@pytest.fixture(scope="module")
def clean_environment(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with macaron's wheel."""
    return environment_with(tmp_path_factory.mktemp("clean") / "env", wheel)


def test_wheel_is_what_the_clean_environment_imports(clean_environment, project_root, tmp_path):
    code = "import fairseq as f, macaron as m, macaron.user_dir as u; print(f.__file__, m.__file__, u.__file__)"
    paths = run(clean_environment, "-c", code, cwd=tmp_path).splitlines()[-1].split()
    home = clean_environment.parent.parent
    assert all(Path(path).is_relative_to(home) for path in paths), paths
    printed = run(clean_environment.parent / "macaron", "user-dir", cwd=tmp_path).strip()
    assert Path(printed).is_relative_to(home)


def test_recipes_of_the_wheel(clean_environment, tmp_path):
    """They have a name that no other package can have, and none of them needs the clone."""
    said = run(clean_environment, "-m", "macaron.recipes", cwd=tmp_path)
    assert "python -m macaron.recipes.NAME" in said and "bert_pretrain" in said
    said = run(clean_environment, "-m", "macaron.recipes.compare", "--help", cwd=tmp_path)
    assert "usage: python -m macaron.recipes.compare" in said
    code = "import macaron.recipes.common.report as r; print(r.Report('t').html())"
    assert "<h1>t</h1>" in run(clean_environment, "-c", code, cwd=tmp_path)
    code = "try: import recipes\nexcept ImportError: print('absent')"
    assert "absent" in run(clean_environment, "-c", code, cwd=tmp_path)


def test_user_dir_option_after_registration(clean_environment, tmp_path):
    """A script that imported macaron first may still be given `--user-dir macaron`."""
    code = "import argparse, macaron, fairseq.utils as u; macaron.register_fairseq(); "
    code += "u.import_user_module(argparse.Namespace(user_dir='macaron')); print('no clash')"
    assert "no clash" in run(clean_environment, "-c", code, cwd=tmp_path)


TRAIN = "--arch macaron_tiny --cpu --optimizer adam --lr 1e-3 --max-tokens 200 --max-update 2 --disable-validation"


def train(python: Path, data_bin: Path, cwd: Path, save_dir: Path) -> None:
    script = python.parent / "fairseq-train"
    command = [script] if script.exists() else [python, "-m", "fairseq_cli.train"]
    output = run(*command, data_bin, "--user-dir", "macaron", "--save-dir", save_dir, *TRAIN.split(), cwd=cwd)
    assert "done training" in output
    assert "@ 2 updates" in output
    assert (save_dir / "checkpoint_last.pt").is_file()


def test_wheel_trains_from_another_folder(clean_environment, tiny_data_bin, tmp_path):
    """`--user-dir macaron` is found beside fairseq, wherever the command is given."""
    train(clean_environment, tiny_data_bin, tmp_path, tmp_path / "run")


# --- an editable install, as `make install` makes it ---------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(project_root, tmp_path_factory) -> Path:
    """A clone with the least convenient of names."""
    return copy_of_tree(project_root, tmp_path_factory.mktemp("ünlikely 'name'") / "macaron")


@pytest.fixture(scope="module")
def editable(clone, tmp_path_factory) -> Path:
    """The Python of an environment with `pip install -e` of the clone."""
    return environment_with(tmp_path_factory.mktemp("editable") / "env", "-e", clone)


def test_editable_is_the_clone(editable, clone, tmp_path):
    code = (
        "import macaron as m, macaron.cli as c; print(m.__file__, c.__file__, *m.__path__, m.__spec__.origin, sep='|')"
    )
    files = run(editable, "-c", code, cwd=tmp_path).strip().split("|")
    package = clone / "macaron"
    assert files == [
        str(path) for path in (package / "__init__.py", package / "cli.py", package, package / "__init__.py")
    ]
    assert run(editable.parent / "macaron", "user-dir", cwd=tmp_path).strip() == str(package)
    assert run(editable, "-m", "macaron", "--version", cwd=tmp_path).split() == ["macaron", macaron.__version__]


@pytest.mark.parametrize("where", ["another folder", "the parent of the clone"])
def test_editable_trains_from(where, editable, clone, tiny_data_bin, tmp_path):
    """fairseq finds `--user-dir macaron`, though no folder of site-packages holds the package."""
    folder = {"another folder": tmp_path, "the parent of the clone": clone.parent}[where]
    train(editable, tiny_data_bin, folder, tmp_path / "run")


@pytest.mark.parametrize(
    "order", ["macaron, fairseq.utils as u; macaron.register_fairseq()", "fairseq.utils as u, macaron"]
)
def test_user_dir_option_after_import_of_an_editable_package(order, editable, clone):
    """Where fairseq takes the name for the clone, too: it is not "not globally unique"."""
    code = f"import argparse, {order}; u.import_user_module(argparse.Namespace(user_dir='macaron'))\n"
    code += "from fairseq.models import MODEL_REGISTRY as m; print('registered', 'macaron_tiny' in m)"
    assert "registered True" in run(editable, "-c", code, cwd=clone.parent)


def test_editable_leaves_nothing_behind(clone, wheel, tmp_path):
    """Whether uninstalled or replaced by a wheel, which has its package at the same place."""
    python = environment_with(tmp_path / "env", "-e", clone, fairseq=False)
    site = site_of(python)
    assert (site / "macaron" / "__init__.py").is_file()
    pip(python, "install", *OFFLINE, wheel)
    assert {path.name for path in (site / "macaron").iterdir()} >= {"user_dir", "models", "dynamics"}
    assert not list(site.glob("__editable__*"))
    pip(python, "install", *OFFLINE, "-e", clone)
    assert {path.name for path in (site / "macaron").iterdir()} - {"__pycache__"} == {"__init__.py"}
    assert (clone / "macaron" / "models" / "user_dir.py").is_file()
    pip(python, "uninstall", "--yes", "macaron-net")
    assert not list(site.glob("*macaron*"))


def test_editable_whose_clone_is_gone_says_so(project_root, tmp_path):
    clone = copy_of_tree(project_root, tmp_path / "clone")
    python = environment_with(tmp_path / "env", "-e", clone, fairseq=False)
    shutil.rmtree(clone)
    code = "try: import macaron\nexcept ImportError as error: print(error)"
    assert f"installed from {clone}/macaron/__init__.py (pip install -e), which is gone" in run(
        python, "-c", code, cwd=tmp_path
    )


def test_tree_is_left_clean(dist, project_root):
    assert not (project_root / "build").exists()
    assert not (project_root / "dist").exists()
