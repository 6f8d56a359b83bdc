"""A folder for the hub that loads with `trust_remote_code=True` where this package is not installed."""

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

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

import macaron
from macaron.bert.auto import AUTO_CLASSES
from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.modeling_macaron_bert import MacaronBertModel

_PACKAGE = "macaron"
# What any installation of transformers brings; other imports are optional in the modules that are exported.
_ALWAYS_THERE = {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"}


def export_for_hub(
    model: PreTrainedModel | str | os.PathLike[str],
    out: str | os.PathLike[str],
    tokenizer: Any = None,
    *,
    force: bool = False,
) -> Path:
    """Write a model, its code and its tokenizer into one folder.

    `AutoModel…from_pretrained(out, trust_remote_code=True)` then works for every head, with nothing but transformers
    installed. The code is that of this package, one file a module.

    Args:
        model: a Macaron BERT, or a folder or hub name that `from_pretrained` takes.
        out: the folder to write; it appears when it is complete.
        tokenizer: the tokenizer to put beside it, or where to load one from; None takes the one beside `model`, if
            there is one.
        force: replace `out` if it exists.

    Returns:
        The folder.

    Raises:
        FileExistsError: `out` exists, and not `force`.
        ValueError: another kind of model, or one whose `depth_rule` is registered by other code.
    """
    out = Path(out)
    if out.exists() and not force:
        raise FileExistsError(f"{out} exists; choose another folder, or replace it with force (--force)")
    card = None
    if not isinstance(model, PreTrainedModel):
        card = Path(model, "README.md")
        if tokenizer is None and any(Path(model, name).exists() for name in ("tokenizer.json", "vocab.txt")):
            tokenizer = model
        model = _load(model)
    if not isinstance(model.config, MacaronBertConfig):
        raise ValueError(f"{type(model).__name__} is no Macaron BERT, so its code is not in this package")
    if model.config.depth_rule != "euler":
        raise ValueError(
            f"depth_rule={model.config.depth_rule!r} is of another module than this package's, which an export does "
            f"not carry; only 'euler' is known where this package is not installed"
        )
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch, "export")
        model.save_pretrained(folder)
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.auto_map = auto_map()
        config.save_pretrained(folder)
        modules = [MacaronBertModel.__module__]
        if type(tokenizer).__module__.startswith(f"{_PACKAGE}."):
            modules.append(type(tokenizer).__module__)
            tokenizer = copy.copy(tokenizer)
            tokenizer._auto_map = {"AutoTokenizer": [None, _reference(type(tokenizer))]}
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


def _load(source: str | os.PathLike[str]) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, MacaronBertConfig):
        raise ValueError(f"{source} holds a model of type {config.model_type!r}, not {MacaronBertConfig.model_type!r}")
    heads = {model.__name__: model for model in AUTO_CLASSES.values()}
    name = (config.architectures or [MacaronBertModel.__name__])[0]
    if name not in heads:
        raise ValueError(f"{source} names the architecture {name!r}; this package has {', '.join(heads)}")
    model, report = heads[name].from_pretrained(
        source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
    )
    wrong = [f"lacks {key}" for key in sorted(report["missing_keys"])]
    wrong += [f"has {key}, for which there is no place" for key in sorted(report["unexpected_keys"])]
    wrong += [f"has {key} {tuple(size)} for {tuple(ours)}" for key, size, ours in sorted(report["mismatched_keys"])]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{source} is not a whole {name}, and an export changes nothing: it {', '.join(wrong[:5])}{more}; copy or "
            f"download it again, or load it as it is meant and save that"
        )
    return model


def auto_map() -> dict[str, str]:
    """Which Auto class finds which class in which file, as `config.json` says it."""
    entries = {"AutoConfig": MacaronBertConfig, **{a.__name__: model for a, model in AUTO_CLASSES.items()}}
    return {auto: _reference(c) for auto, c in entries.items()}


def _reference(c: type) -> str:
    return f"{_flat(c.__module__)}.{c.__name__}"


def sources(modules: Iterable[str]) -> dict[str, str]:
    """File name -> text of `modules` and of those that they need, importing each other as neighbours in one folder."""
    modules = list(modules)
    texts, needs = {}, {}
    for name in modules:  # grows
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        texts[name], needs[name] = _with_neighbours(Path(spec.origin).read_text(encoding="utf-8"))
        modules += [module for module in needs[name] if module not in modules]
    # Operators are registered in one process-wide table, where other copies of this code may be.
    digest = hashlib.sha256("".join(texts.values()).encode()).hexdigest()[:8]
    about = f"# Part of macaron-net {macaron.__version__} (MIT licence), exported from "
    files = {}
    for name, text in texts.items():
        text = text.replace(f'"{_PACKAGE}::', f'"{_PACKAGE}_{digest}::')
        if name.startswith(f"{_PACKAGE}.bert."):
            text += _direct_imports(name, needs)
        files[f"{_flat(name)}.py"] = f"{about}{name}\n{text}"
    return files


def _direct_imports(name: str, needs: dict[str, list[str]]) -> str:
    """Lines that import what a module needs through others: old versions of transformers copy no more than what the
    file itself imports."""
    reached = list(needs[name])
    for module in reached:  # grows
        reached += [other for other in needs[module] if other not in reached]
    indirect = sorted({_flat(module) for module in reached} - {_flat(module) for module in needs[name]})
    return "".join(f"from .{module} import __doc__ as _  # noqa\n" for module in indirect)


def _flat(module: str) -> str:
    """macaron.ops.step_norm -> macaron_ops_step_norm; what is in macaron.bert keeps its own name."""
    return module.removeprefix(f"{_PACKAGE}.bert.").replace(".", "_")


def _with_neighbours(text: str) -> tuple[str, list[str]]:
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
            lines[first] = lines[first].replace(f"from {name} import", f"from .{_flat(name)} import")
        elif top not in _ALWAYS_THERE:
            indent = lines[first][: node.col_offset]
            inside = "\n".join("    " + line for line in lines[first:last])
            lines[first] = f"{indent}try:\n{inside}\n{indent}except ImportError:\n{indent}    raise"
            lines[first + 1 : last] = [""] * (last - first - 1)
    return "\n".join(lines) + "\n", imported


__all__ = ["export_for_hub"]
