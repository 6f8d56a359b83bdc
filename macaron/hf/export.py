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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

import macaron
from macaron.dynamics.rules import is_built_in_rule
from macaron.dynamics.solvers import is_built_in_solver
from macaron.particles.flows import FLOWS

_PACKAGE = "macaron"
# What any installation of transformers brings; other imports are optional in the modules that are exported.
_ALWAYS_THERE = {*sys.stdlib_module_names, "torch", "transformers", "huggingface_hub"}


class Family(NamedTuple):
    """Models of one kind of this package.

    Fields:
        name: in messages.
        config: the class of their configuration.
        base: the class of the model without a head; its module and what that imports are the code.
        auto_classes: which Auto class of transformers stands for which of them.
        tokenizer_files: one of these is in a folder with a tokenizer.
    """

    name: str
    config: Any
    base: type[PreTrainedModel]
    auto_classes: Mapping[Any, type[PreTrainedModel]]
    tokenizer_files: tuple[str, ...]

    def load(self, source: str | os.PathLike[str], **options: str) -> PreTrainedModel:
        """One of them by the class that it was saved with, whole.

        Args:
            options: of `load_whole`.

        Raises:
            ValueError: another kind of model, or not all of it.
        """
        config = AutoConfig.from_pretrained(source)
        if not isinstance(config, self.config):
            kinds = f"{config.model_type!r}, not {self.config.model_type!r}"
            raise ValueError(f"{source} holds a model of type {kinds}")
        heads = {model.__name__: model for model in self.auto_classes.values()}
        name = (config.architectures or [self.base.__name__])[0]
        if name not in heads:
            raise ValueError(f"{source} names the architecture {name!r}; this package has {', '.join(heads)}")
        return load_whole(heads[name], source, **options)

    def auto_map(self) -> dict[str, str]:
        """Which Auto class finds which class in which file, as `config.json` says it."""
        entries = {"AutoConfig": self.config, **{a.__name__: model for a, model in self.auto_classes.items()}}
        return {auto: reference(c) for auto, c in entries.items()}

    def export(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        out: str | os.PathLike[str],
        tokenizer: Any = None,
        *,
        force: bool = False,
    ) -> Path:
        """Write a model, its code and its tokenizer into one folder: `export_for_hub` of each kind of model.

        `AutoModel…from_pretrained(out, trust_remote_code=True)` and `AutoTokenizer` then work where this package is
        not installed: the model with nothing but transformers, a tokenizer of this package with what its settings ask
        for (sacremoses, regex, subword-nmt, sentencepiece). The code is that of this package, one file a module.

        Args:
            model: one of this kind, or a folder or hub name that `from_pretrained` takes.
            out: the folder to write; it appears when it is complete.
            tokenizer: the tokenizer to put beside it, or where to load one from; None takes the one beside `model`, if
                there is one.
            force: replace `out` if it exists.

        Returns:
            The folder.

        Raises:
            FileExistsError: `out` exists, and not `force`.
            ValueError: another kind of model, or one with a `depth_rule`, solver or flow that other code registers.
        """
        out = Path(out)
        if out.exists() and not force:
            raise FileExistsError(f"{out} exists; choose another folder, or replace it with force (--force)")
        card = None
        if not isinstance(model, PreTrainedModel):
            card = Path(model, "README.md")
            if tokenizer is None and any(Path(model, name).exists() for name in self.tokenizer_files):
                tokenizer = model
            model = self.load(model)
        if not isinstance(model.config, self.config):
            raise ValueError(f"{type(model).__name__} is no {self.name}, so its code is not in this package")
        for option, known in (("depth_rule", is_built_in_rule), ("solver", is_built_in_solver)):
            if not known(value := getattr(model.config, option)):
                raise ValueError(
                    f"{option}={value!r} is of another module than this package's, which an export does not carry; "
                    f"choose one of this package's"
                )
        splitting = model.config.scheme().splitting
        if foreign := [flow for flow in splitting.flows if flow in FLOWS]:
            raise ValueError(
                f"splitting={model.config.splitting!r}: the flow {', '.join(foreign)} is of another module than this "
                f"package's, which an export does not carry; only ffn and attention are known where this package is "
                f"not installed"
            )
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        return write_folder(out, model, self.base.__module__, self.auto_map(), tokenizer, card)


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
            found = [None, reference(type(tokenizer))]  # the class in Python, that of the `tokenizers` library
            tokenizer._auto_map = {"AutoTokenizer": found if tokenizer.is_fast else found[::-1]}
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
