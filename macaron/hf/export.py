"""A model with its code in one folder, for where this package is not installed."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import macaron

_PACKAGE = "macaron"
# What any installation of transformers brings; other imports are optional in the modules that are exported.
_ALWAYS_THERE = {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"}


def write_folder(
    out: Path,
    model: PreTrainedModel,
    code: str,
    auto_map: dict[str, str],
    tokenizer: Any = None,
    card: Path | None = None,
) -> Path:
    """Write a model, its code and its tokenizer into `out`, which appears, or is replaced, when it is complete.

    Args:
        code: the module that defines the model.
        auto_map: which Auto class finds which class in which file, see `reference`.
        card: a README.md to copy, if it is there.

    Returns:
        The folder.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch, "export")
        model.save_pretrained(folder)
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.auto_map = auto_map
        config.save_pretrained(folder)
        modules = [code]
        if type(tokenizer).__module__.startswith(f"{_PACKAGE}."):
            modules.append(type(tokenizer).__module__)
            tokenizer = copy.copy(tokenizer)
            tokenizer._auto_map = {"AutoTokenizer": [None, reference(type(tokenizer))]}
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        for name, text in sources(modules).items():
            (folder / name).write_text(text, encoding="utf-8")
        if card is not None and card.is_file():
            shutil.copyfile(card, folder / card.name)
        if out.exists():
            os.replace(out, Path(scratch, "replaced"))
        os.replace(folder, out)
    return out


def load_whole(
    kind: type[PreTrainedModel], source: str | os.PathLike[str], purpose: str = "an export changes nothing"
) -> PreTrainedModel:
    """The model, if the folder has all of it and nothing else.

    Args:
        purpose: why that is asked for.

    Raises:
        ValueError: tensors are missing, left over, or of another size.
    """
    model, report = kind.from_pretrained(source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True)
    wrong = [f"lacks {key}" for key in sorted(report["missing_keys"])]
    wrong += [f"has {key}, for which there is no place" for key in sorted(report["unexpected_keys"])]
    wrong += [f"has {key} {tuple(size)} for {tuple(ours)}" for key, size, ours in sorted(report["mismatched_keys"])]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{source} is not a whole {kind.__name__}, and {purpose}: it {', '.join(wrong[:5])}{more}; "
            f"copy or download it again, or load it as it is meant and save that"
        )
    return model


def reference(c: type) -> str:
    """How `config.json` names a class in a file of the model's folder."""
    return f"{c.__module__.rpartition('.')[2]}.{c.__name__}"


def sources(modules: Iterable[str]) -> dict[str, str]:
    """File name -> text of `modules` and of those that they need, importing each other as neighbours in one folder.

    The package of the first is the model's: its modules keep their names, the others have those of their packages.
    """
    modules = list(modules)
    home = modules[0].rpartition(".")[0] + "."
    texts, needs = {}, {}
    for name in modules:  # grows
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        texts[name], needs[name] = _with_neighbours(Path(spec.origin).read_text(encoding="utf-8"), home)
        modules += [module for module in needs[name] if module not in modules]
    # Operators are registered in one process-wide table, where other copies of this code may be.
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:8]
    about = f"# Part of macaron-net {macaron.__version__} (MIT licence), exported from "
    files = {}
    for name, text in texts.items():
        text = text.replace(f'"{_PACKAGE}::', f'"{_PACKAGE}_{digest}::')
        if name.startswith(home):
            text += _direct_imports(name, needs, home)
        files[f"{_flat(name, home)}.py"] = f"{about}{name}\n{text}"
    return files


def _direct_imports(name: str, needs: dict[str, list[str]], home: str) -> str:
    """Lines that import what a module needs through others: old versions of transformers copy no more than what the
    file itself imports."""
    reached = list(needs[name])
    for module in reached:  # grows
        reached += [other for other in needs[module] if other not in reached]
    indirect = sorted({_flat(module, home) for module in set(reached) - set(needs[name])})
    return "".join(f"from .{module} import __doc__ as _  # noqa\n" for module in indirect)


def _flat(module: str, home: str) -> str:
    """macaron.ops.step_norm -> macaron_ops_step_norm; what is in `home` keeps its own name."""
    return module.removeprefix(home).replace(".", "_")


def _with_neighbours(text: str, home: str) -> tuple[str, list[str]]:
    """The module with its imports from this package made relative, and the names of the modules imported.

    transformers refuses code whose absolute imports are not all installed, save those under `try`: so optional ones
    go there.
    """
    lines = text.splitlines()
    imported = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        assert name is not None, "this package imports absolutely"
        top = name.partition(".")[0]
        if top == _PACKAGE:
            spec = importlib.util.find_spec(name)
            assert spec is not None and spec.submodule_search_locations is None, f"import from modules, not {name}"
            imported.append(name)
            lines[first] = lines[first].replace(f"from {name} import", f"from .{_flat(name, home)} import")
        elif top not in _ALWAYS_THERE:
            indent = lines[first][: node.col_offset]
            inside = "\n".join("    " + line for line in lines[first:last])
            lines[first] = f"{indent}try:\n{inside}\n{indent}except ImportError:\n{indent}    raise"
            lines[first + 1 : last] = [""] * (last - first - 1)
    return "\n".join(lines) + "\n", imported
