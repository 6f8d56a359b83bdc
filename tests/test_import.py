"""The front door: light, lazy, and registering with fairseq whoever is imported first."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

import macaron


def run_python(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints, from a folder where only the installed package can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light(tmp_path):
    code = (
        "import sys; before = set(sys.modules)\n"
        "import macaron, macaron.cli\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new & {'torch', 'numpy', 'fairseq', 'transformers', 'triton', 'sklearn', 'tqdm'}))"
    )
    assert run_python(code, tmp_path) == ""


def test_import_takes_nothing_but_the_standard_library(tmp_path):
    """So it takes milliseconds, whatever else is installed."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "import macaron\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    assert run_python(code, tmp_path) == "macaron"


@pytest.mark.parametrize("name", macaron.__all__)
def test_every_public_name_loads(name):
    value = getattr(macaron, name)
    assert getattr(value, "__module__", "macaron").partition(".")[0] == "macaron"
    assert getattr(value, "__name__", name) == name
    assert name in dir(macaron)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'Strang'; it has LIE, STRANG, "):
        _ = macaron.Strang


# What a script prints when it asks fairseq for our architecture and then for `--user-dir macaron`.
LOOK = (
    "from fairseq.models import MODEL_REGISTRY as m, ARCH_MODEL_REGISTRY as a\n"
    "print('macaron_tiny' in m or 'macaron_tiny' in a)\n"
)
AGAIN = "import argparse, fairseq.utils as u; u.import_user_module(argparse.Namespace(user_dir={user_dir!r}))\n"
FOLDER = str(Path(macaron.__file__).parent)
ORDERS = {
    "macaron first": "import macaron; macaron.register_fairseq()\n",
    "fairseq between": "import macaron, fairseq; macaron.register_fairseq()\n",
    "fairseq first": "import fairseq, macaron\n",
    "fairseq first, a submodule": "import fairseq, macaron.dynamics\n",
    "fairseq first, the user dir": "import fairseq, macaron.user_dir\n",
    "the model class": "import macaron; macaron.MacaronModel\n",
    "twice": "import macaron; macaron.register_fairseq(); macaron.register_fairseq()\n",
    "through --user-dir": AGAIN.format(user_dir=FOLDER),
}


# Runs codes one after another, each in a fork of an interpreter that has imported what fairseq imports, and no more.
FORKS = """if True:
    import hydra, numpy, omegaconf, os, sacrebleu, sklearn.metrics, sys, torch, torch.distributed, torch.utils.data
    assert not {"fairseq", "macaron", "user_dir"} & set(sys.modules)
    for code in CODES:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print("failed:", code)
        print("--")
    """


@pytest.fixture(scope="module")
def printed(project_root, tmp_path_factory) -> dict[str, list[str]]:
    """What each of `ORDERS` prints, and "folder": `--user-dir user_dir`, then the package."""
    codes = {order: code + LOOK + AGAIN.format(user_dir=FOLDER) + LOOK for order, code in ORDERS.items()}
    codes["folder"] = AGAIN.format(user_dir=str(project_root / "user_dir")) + LOOK
    codes["folder"] += "import sys, macaron; macaron.register_fairseq(); print('macaron.user_dir' in sys.modules)"
    said = run_python(f"CODES = {list(codes.values())!r}\n{FORKS}", tmp_path_factory.mktemp("printed"))
    return dict(zip(codes, [part.split() for part in said.split("--")], strict=False))


@pytest.mark.parametrize("order", ORDERS)
def test_models_are_registered_in_any_order(order, printed):
    assert printed[order] == ["True", "True"]


def test_folder_and_package_do_not_register_twice(printed):
    """`--user-dir user_dir` imports the same files under another name; importing macaron must not clash."""
    assert printed["folder"] == ["True", "False"]


def test_register_without_fairseq_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['fairseq'] = None\n"
        "import macaron\n"
        "try: macaron.register_fairseq()\n"
        "except ImportError as error: print(error)"
    )
    # None in sys.modules is how Python marks a module that must not be found.
    assert "pip install 'macaron-net[fairseq]'" in run_python(code, tmp_path)


def test_register_in_a_clone_that_is_not_installed_says_to_install(project_root, tmp_path):
    code = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        "sys.path[:] = [p for p in sys.path if 'editable' not in p]\n"
        f"sys.path.insert(0, {str(project_root)!r})\n"
        "import macaron\n"
        "try: macaron.register_fairseq()\n"
        "except ImportError as error: print(error)"
    )
    assert "pip install -e ." in run_python(code, tmp_path)


TRAIN = "--arch macaron_tiny --cpu --optimizer adam --lr 1e-3 --max-tokens 200 --max-update 1 --disable-validation"


def train_one_update(
    fairseq_cli, data_bin: Path, user_dir: str, cwd: Path, save_dir: Path, fresh: bool = False
) -> None:
    arguments = [*TRAIN.split(), "--user-dir", user_dir, "--save-dir", save_dir]
    assert "done training" in fairseq_cli("fairseq-train", data_bin, *arguments, cwd=cwd, fresh=fresh).stdout


@pytest.mark.parametrize("user_dir", ["macaron", "user_dir"])
def test_fairseq_train_takes_both_folders_from_a_clone(user_dir, project_root, tiny_data_bin, fairseq_cli, tmp_path):
    train_one_update(fairseq_cli, tiny_data_bin, user_dir, cwd=project_root, save_dir=tmp_path)


def test_fairseq_train_takes_the_printed_path_from_anywhere(tiny_data_bin, fairseq_cli, tmp_path):
    path = run_python("from macaron.cli import main; main(['user-dir'])", tmp_path)
    train_one_update(fairseq_cli, tiny_data_bin, path, cwd=tmp_path, save_dir=tmp_path, fresh=True)


# -- who may import whom


def imports(source: str, package: str) -> set[str]:
    """Every module, or name in one, that a file of the package imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                base = resolve_name("." * level + (module or ""), package)
                found |= {f"{base}.{alias.name}" for alias in names}
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                found.add(name)
    return found


def is_of(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def imports_of_files(folder: Path, package: str) -> dict[str, set[str]]:
    """Path below `folder` -> what that file imports."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(folder)
        inside = ".".join([package, *place.parts[:-1]])
        found[place.as_posix()] = imports(path.read_text(encoding="utf-8"), inside)
    assert found, folder
    return found


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import macaron.user_dir.hub as h", "macaron.user_dir.hub"),
        ("from macaron import user_dir", "macaron.user_dir"),
        ("def f():\n    from macaron.user_dir import hub", "macaron.user_dir.hub"),
        ("from .. import user_dir", "macaron.user_dir"),
        ("from ..user_dir import hub", "macaron.user_dir.hub"),
        ("import importlib; importlib.import_module('macaron.user_dir')", "macaron.user_dir"),
        ("from importlib import import_module; import_module('macaron.user_dir')", "macaron.user_dir"),
    ],
)
def test_imports_are_found_in_every_form(source, name):
    assert name in imports(source, "macaron.bert")


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("dynamics", ()),
        ("ops", ()),
        ("particles", ("macaron.dynamics", "macaron.ops")),
        ("hf", ("macaron.adversary", "macaron.dynamics", "macaron.ops", "macaron.particles")),
        ("pde", ("macaron.dynamics",)),
        ("vision", ("macaron.dynamics",)),
        ("analysis.py", ("macaron.dynamics",)),
        ("adversary.py", ("macaron.dynamics",)),
    ],
)
def test_the_lower_rooms_import_none_above_them(room, others, project_root):
    place = project_root / "macaron" / room
    if place.is_file():
        room = place.stem
        found = {place.name: imports(place.read_text(encoding="utf-8"), "macaron")}
    else:
        found = imports_of_files(place, f"macaron.{room}")
    for path, names in found.items():
        ours = {name for name in names if is_of(name, "macaron", "user_dir", "recipes")}
        ours -= {"macaron"} if room == "hf" else set()  # which it writes out
        assert {name for name in ours if not is_of(name, f"macaron.{room}", *others)} == set(), path


@pytest.mark.parametrize(
    ("host", "other"), [("macaron/bert", ("macaron.user_dir", "user_dir")), ("user_dir", ("macaron.bert",))]
)
def test_the_hosts_do_not_import_each_other(host, other, project_root):
    package = "macaron." + Path(host).name
    for path, names in imports_of_files(project_root / host, package).items():
        assert {name for name in names if is_of(name, *other)} == set(), path


def test_fairseq_is_imported_at_its_door_only(project_root):
    for path, names in imports_of_files(project_root / "macaron", "macaron").items():
        if path != "_fairseq.py" and not path.startswith("models/"):
            assert {name for name in names if is_of(name, "fairseq")} == set(), path


def test_what_recipes_share_knows_no_recipe_and_no_host(project_root):
    for path, names in imports_of_files(project_root / "recipes" / "common", "recipes.common").items():
        strange = {name for name in names if is_of(name, "fairseq", "transformers", "recipes", "macaron.user_dir")}
        assert {name for name in strange if not is_of(name, "recipes.common")} == set(), path
