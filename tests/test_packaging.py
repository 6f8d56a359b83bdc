"""The built package: what is in it, and that it trains where nothing else of this project is."""

from __future__ import annotations

import os
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
    for path in (root / "user_dir").rglob("*.py"):
        found[f"macaron/user_dir/{path.relative_to(root / 'user_dir')}"] = path
    return found


@pytest.fixture(scope="module")
def dist(project_root, tmp_path_factory) -> Path:
    """A folder with the sdist and the wheel, the wheel built from the sdist, from a copy of the tree."""
    copy = tmp_path_factory.mktemp("source")
    for path in project_root.iterdir():  # no environments, no outputs of recipes
        if path.name in ("macaron", "user_dir", "recipes", "tests"):
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy2(path, copy)
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
    in_tree = [*(project_root / "macaron").rglob("*.yaml"), *(project_root / "user_dir").rglob("*.yaml")]
    assert {Path(name).name for name in data if name.endswith(".yaml")} == {path.name for path in in_tree}


def test_sdist_holds_the_source_and_the_tests(dist, project_root):
    (path,) = dist.glob("*.tar.gz")
    top = f"macaron_net-{macaron.__version__}/"
    with tarfile.open(path) as archive:
        names = {name.removeprefix(top) for name in archive.getnames()}
    assert {str(path.relative_to(project_root)) for path in modules(project_root).values()} <= names
    assert {"pyproject.toml", "LICENSE", "CHANGELOG.md", "CITATION.cff", "tests/test_packaging.py"} <= names
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
        "dev",
    }
    assert b"macaron = macaron.cli:main" in archive.read(f"{info}/entry_points.txt")


def test_versions_agree(project_root):
    assert f"version: {macaron.__version__}\n" in (project_root / "CITATION.cff").read_text(encoding="utf-8")


def install_fairseq(python: Path, site: Path) -> None:
    """fairseq beside macaron: from the wheel that `make install` keeps, else copied from this environment."""
    wheels = sorted((Path(sys.prefix) / "wheels").glob("fairseq_fixed-*.whl"))
    if wheels:
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--python",
            python,
            "install",
            "--no-index",
            "--no-deps",
            "--quiet",
        )
        run(*pip, wheels[-1], cwd=site)
        return
    for name in {Path(str(file)).parts[0] for file in files("fairseq-fixed") or ()} - {"..", "__pycache__"}:
        copy = shutil.copytree if (SITE / name).is_dir() else shutil.copy2
        copy(SITE / name, site / name)


@pytest.fixture(scope="module")
def clean_environment(wheel, tmp_path_factory) -> Path:
    """The Python of an environment with macaron's wheel and fairseq; ours lends it their requirements."""
    home = tmp_path_factory.mktemp("clean") / "env"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['platlib'])", cwd=home).strip())
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", "--quiet")
    run(*pip, wheel, cwd=home)
    install_fairseq(python, site)
    # Python ignores the .pth files of a folder that a .pth file names, so an editable macaron stays behind.
    (site / "lent.pth").write_text(f"{SITE}\n", encoding="utf-8")
    return python


def test_wheel_is_what_the_clean_environment_imports(clean_environment, project_root, tmp_path):
    code = "import fairseq as f, macaron as m, macaron.user_dir as u; print(f.__file__, m.__file__, u.__file__)"
    paths = run(clean_environment, "-c", code, cwd=tmp_path).splitlines()[-1].split()
    home = clean_environment.parent.parent
    assert all(Path(path).is_relative_to(home) for path in paths), paths
    printed = run(clean_environment.parent / "macaron", "user-dir", cwd=tmp_path).strip()
    assert Path(printed).is_relative_to(home)


def test_user_dir_option_after_registration(clean_environment, tmp_path):
    """A script that imported macaron first may still be given `--user-dir macaron`."""
    code = "import argparse, macaron, fairseq.utils as u; macaron.register_fairseq(); "
    code += "u.import_user_module(argparse.Namespace(user_dir='macaron')); print('no clash')"
    assert "no clash" in run(clean_environment, "-c", code, cwd=tmp_path)


TRAIN = "--arch macaron_tiny --cpu --optimizer adam --lr 1e-3 --max-tokens 200 --max-update 2 --disable-validation"


def test_wheel_trains_from_another_folder(clean_environment, tiny_data_bin, tmp_path):
    """`--user-dir macaron` is found beside fairseq, wherever the command is given."""
    script = clean_environment.parent / "fairseq-train"
    command = [script] if script.exists() else [clean_environment, "-m", "fairseq_cli.train"]
    arguments = ["--user-dir", "macaron", "--save-dir", "run", *TRAIN.split()]
    output = run(*command, tiny_data_bin, *arguments, cwd=tmp_path)
    assert "done training" in output
    assert "@ 2 updates" in output
    assert (tmp_path / "run" / "checkpoint_last.pt").is_file()


def test_tree_is_left_clean(dist, project_root):
    assert not (project_root / "build").exists()
    assert not (project_root / "dist").exists()
