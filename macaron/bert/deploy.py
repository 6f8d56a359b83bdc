"""A Macaron BERT in a folder for where it is used: as ONNX, in 8 bits, or as a program of torch.export.

onnx          model.onnx for onnxruntime, of any number of sentences and tokens
onnx-int8     the same in 8 bits, by onnxruntime's dynamic quantization
torch-int8    model.int8.safetensors, 8-bit numbers and a scale for each row, for `load_int8`
torch-export  model.pt2 for `torch.export.load`

Beside it are the tokenizer, the configuration with its labels, and a README.md with the code that runs it. `load_int8`
needs this package; nothing else does. 8 bits in torch are `macaron.decoding.weights`, and not torchao: with MiniLM and
64 sentences on one core 877 to 905 sentences a second, torchao 0.18 511 to 632, at the same error. ONNX is by
torch.onnx, and not optimum, which (optimum-onnx 0.1) ends before transformers 5.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from macaron import onnx
from macaron.bert.auto import AUTO_CLASSES
from macaron.bert.configuration_macaron_bert import MacaronBertConfig
from macaron.bert.hub import load
from macaron.bert.modeling_macaron_bert import MacaronBertForMultipleChoice, MacaronBertModel
from macaron.bert.published import check_vocabulary
from macaron.decoding.weights import choose_precision, packed
from macaron.hf.export import reference, sources
from macaron.hf.folders import check_free, put
from macaron.hf.loading import listed
from macaron.quantization import quantized

FORMATS = ("onnx", "onnx-int8", "torch-int8", "torch-export")
INT8_FILE, INT8_KIND, SCALE = "model.int8.safetensors", "macaron-int8 1", ".scale"

_CLOSE = 1e-4  # of the greatest number in an output: float32 by another compiler
_CLOSE_INT8 = 0.25  # root mean square of the difference over that of the output; 0.03 to 0.12 are usual
_SENTENCES = [
    "How fast is it?",
    "The weather was fine, and we walked along the river until it was dark.",
    "A second reading of the bill was agreed to by 212 votes, with 31 members who did not vote at all.",
    "No.",
]


@dataclass(frozen=True)
class Exported:
    """
    Fields:
        folder: what was written.
        difference: the greatest of the numbers that come out, from those of the model in float32.
        relative: root mean square of the difference over that of the numbers, of the output that is furthest.
    """

    folder: Path
    difference: float
    relative: float


def export(source: str | os.PathLike[str], out: str | os.PathLike[str], form: str, *, force: bool = False) -> Exported:
    """Write a Macaron BERT into a folder for where it is used, and compare it there with what it comes from.

    A folder of sentence-transformers, with mean or first-token pooling, becomes a model with one more output,
    `sentence_embedding`; prompts, which go before a text, are in the README.md.

    Args:
        source: a folder that `save_pretrained` wrote.
        out: the folder to write; it is complete or not there.
        form: one of `FORMATS`.
        force: write into `out` though there is something in it.

    Raises:
        FileExistsError: something is in `out`.
        FileNotFoundError: there is no such folder.
        ImportError: a library of the format is missing.
        ValueError: another kind of model, one that cannot be exported, a processor without 8-bit products, or numbers
            that differ.
    """
    if form not in FORMATS:
        raise ValueError(f"format {form!r} is unknown for a Macaron BERT; choose one of {', '.join(FORMATS)}")
    out = Path(os.path.realpath(out))  # a link to a folder stays one
    if not Path(source).is_dir():
        raise FileNotFoundError(f"there is no folder {source}; of a model on the hub, `hf download` makes one")
    if out == Path(source).resolve():
        raise ValueError(f"{out} is the model itself; name another folder")
    check_free(out, force)
    if form.startswith("onnx"):
        onnx.check_libraries()
    elif form == "torch-int8":
        choose_precision("int8")
    model = load(source).float().eval()
    if model.config.horizon == "learned":
        raise ValueError(
            f"{source} has horizon='learned', which looks at its sentences to decide how deep to go, as no fixed "
            f"program can; export a model with horizon='fixed' or 'none'"
        )
    tokenizer = _tokenizer(source, model.config)
    plain = Plain(model, Pooling.of(Path(source), tokenizer), _inputs(model, tokenizer))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch, "complete")
        folder.mkdir()
        _write(plain, folder, form)
        difference, relative = _compare(plain, _reader(plain, folder, form), tokenizer, form)
        _write_text(model, tokenizer, folder, form)
        (folder / "README.md").write_text(_readme(plain, form, tokenizer, difference), encoding="utf-8")
        put(folder, out)
    return Exported(out, difference, relative)


@dataclass(frozen=True)
class Pooling:
    """What sentence-transformers does behind the encoder.

    Fields:
        mode: "mean" or "cls".
        normalize: to length 1.
        prompts: what goes before a text, by their names; prompt: that which goes before every text, if none is named.
    """

    mode: str
    normalize: bool
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""

    @classmethod
    def of(cls, folder: Path, tokenizer: Any) -> Pooling | None:
        """That of a folder; None where it is none of sentence-transformers. The tokenizer gets its greatest length.

        Raises:
            ValueError: modules that have no counterpart here.
        """
        if not (folder / "modules.json").is_file():
            return None
        modules = _json(folder / "modules.json", list)
        kinds = [str(m.get("type")).rpartition(".")[2] if isinstance(m, dict) else repr(m) for m in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
            raise ValueError(
                f"{folder / 'modules.json'} lists {', '.join(kinds)}; an export knows Transformer, Pooling and "
                f"Normalize in this order. To export the encoder alone, copy the folder without modules.json"
            )
        path = str(modules[1].get("path"))
        if path in ("", "..") or path != Path(path).name:
            raise ValueError(f"{folder / 'modules.json'} names {path!r}, which is no folder beside it")
        mode = cls._mode(folder / path / "config.json")
        prompts, prompt = cls._prompts(folder, folder / path / "config.json")
        for file in sorted(folder.glob("sentence_*_config.json")):  # named after the encoder by older versions
            settings = _json(file, dict)
            if settings.get("do_lower_case"):
                raise ValueError(
                    f"{file} has do_lower_case, which no tokenizer file says; set it to false and lower the text "
                    f"yourself"
                )
            longest = settings.get("max_seq_length")
            if tokenizer is not None and type(longest) is int and longest > 0:
                tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
        return cls(mode, kinds[2:] == ["Normalize"], prompts, prompt)

    @staticmethod
    def _prompts(folder: Path, pooling: Path) -> tuple[dict[str, str], str]:
        """Those of a folder by their names, and the one that goes before every text."""
        file = folder / "config_sentence_transformers.json"
        settings = _json(file, dict) if file.is_file() else {}
        found, default = settings.get("prompts") or {}, settings.get("default_prompt_name")
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise ValueError(f"{file}: prompts is {found!r}, expected names and their texts; copy the folder again")
        if default is not None and default not in found:
            raise ValueError(f"{file}: default_prompt_name is {default!r}, which is none of {listed(found) or 'none'}")
        prompts = {str(name): text for name, text in found.items() if text}
        if prompts and not _json(pooling, dict).get("include_prompt", True):
            raise ValueError(
                f"{pooling} leaves the prompts ({listed(prompts)}) out of the mean, for which an export has no input; "
                f"to export the encoder alone, copy the folder without modules.json"
            )
        return prompts, found.get(default, "")

    @staticmethod
    def _mode(path: Path) -> str:
        settings = _json(path, dict)
        modes = settings.get("pooling_mode")
        if modes is None:  # by older versions
            modes = [
                {"mean_tokens": "mean", "cls_token": "cls"}.get(word, word)
                for name, value in settings.items()
                if value is True and (word := name.removeprefix("pooling_mode_")) != name
            ] or ["mean"]
        modes = [modes] if isinstance(modes, str) else list(modes)
        if len(modes) != 1 or modes[0] not in ("mean", "cls"):
            raise ValueError(
                f"{path} asks for the pooling {', '.join(map(str, modes))}; an export knows mean, and cls. To export "
                f"the encoder alone, copy the folder without modules.json"
            )
        return str(modes[0])

    def __call__(self, x: Tensor, real: Tensor) -> Tensor:
        """(B, T, C), (B, T) → (B, C)."""
        if self.mode == "cls":
            first = real.long().argmax(1)[:, None, None]  # padding may stand on the left
            y = x.gather(1, first.expand(-1, 1, x.size(-1))).squeeze(1)
        else:
            weight = real.unsqueeze(-1).to(x.dtype)
            y = (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return F.normalize(y, dim=-1) if self.normalize else y


class Plain(nn.Module):
    """A model with its head as tensors in, a tuple of tensors out, by the names `inputs` and `outputs`."""

    def __init__(self, model: PreTrainedModel, pooling: Pooling | None, inputs: list[str]) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        self.pooling = pooling if type(model) is MacaronBertModel else None
        with torch.no_grad():
            found = model(**next(_random(self, [(2, 3)])))
        self.outputs = list(found.keys())
        if self.pooling is not None:
            self.outputs = ["sentence_embedding", "last_hidden_state"]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return self.read(found, attention_mask)

    def read(self, found: Any, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Of a model's output."""
        first = () if self.pooling is None else (self.pooling(found.last_hidden_state, attention_mask),)
        return first + tuple(found[name] for name in self.outputs[len(first) :])


# --- what is written and read ---------------------------------------------------------------------------------------


def _write(plain: Plain, folder: Path, form: str) -> None:
    if form == "torch-int8":
        _save_int8(plain.model, folder / INT8_FILE)
        return
    example = next(_random(plain, [(3, 7)]))
    exported = onnx.program(plain, example)
    if form == "torch-export":
        torch.export.save(exported, folder / "model.pt2")
        return
    axes = {0: "sentences", next(iter(example.values())).dim() - 1: "tokens"}
    if len(next(iter(example.values())).shape) == 3:
        axes[1] = "choices"
    onnx.write(exported, folder / "model.onnx", plain.outputs, {name: axes for name in example})
    if form == "onnx-int8":
        os.replace(folder / "model.onnx", folder / "whole.onnx")
        onnx.quantize(folder / "whole.onnx", folder / "model.onnx")
        for file in folder.glob("whole.onnx*"):
            file.unlink()


def _reader(plain: Plain, folder: Path, form: str) -> Any:
    """What was written, from batches to outputs as `Plain`'s."""
    if form == "torch-int8":
        plain.model.config.architectures = [type(plain.model).__name__]
        plain.model.config.save_pretrained(folder)
        model = load_int8(folder)
        return lambda batch: plain.read(model(**batch), batch["attention_mask"])
    if form == "torch-export":
        whole = torch.export.load(folder / "model.pt2").module()
        return lambda batch: whole(**batch)
    session = onnx.Session(folder / "model.onnx")
    return lambda batch: session(**batch).values()


def _save_int8(model: PreTrainedModel, file: Path) -> None:
    """Matrices of linear maps and embeddings as `macaron.quantization.quantized` has them; the rest in float32."""
    small = {id(m.weight) for m in model.modules() if type(m) in (nn.Linear, nn.Embedding)}
    tensors = {}
    for name, parameter in model.named_parameters():  # tied ones once
        values = parameter.detach()
        if id(parameter) in small:
            values, tensors[name + SCALE] = quantized(values)
        tensors[name] = values.contiguous()
    keys = set(model.state_dict())
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name in keys}
    # not save_file, which hides what it writes from other users
    file.write_bytes(save(tensors, metadata={"format": "pt", "kind": INT8_KIND}))


def load_int8(folder: str | os.PathLike[str]) -> PreTrainedModel:
    """The model of a folder that `macaron export --format torch-int8` wrote, for inference on this CPU.

    W ≈ s_w Q_w with 8-bit Q_w and one scale for each row; activations are rounded as they come, with one scale for each
    particle. The float32 numbers are there for as long as it loads.

    Raises:
        FileNotFoundError: it is no such folder.
        ValueError: files that are damaged or do not fit each other, or a processor without 8-bit products.
    """
    choose_precision("int8")
    file = Path(folder, INT8_FILE)
    again = "export the model again, or copy the whole folder"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} has no {INT8_FILE}, so `macaron export --format torch-int8` did not write it"
        )
    try:
        with safe_open(file, "pt") as held:
            kind = (held.metadata() or {}).get("kind")
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}); {again}") from error
    if kind != INT8_KIND:
        raise ValueError(f"{file} says it is {kind!r}, and this version of macaron reads {INT8_KIND!r}; {again}")
    state = {}
    for name, values in tensors.items():
        if name.endswith(SCALE):
            continue
        scale = tensors.get(name + SCALE)
        if (scale is None) == (values.dtype == torch.int8) or (scale is not None and scale.shape != values.shape[:1]):
            raise ValueError(f"{file}: {name} and its scales do not fit each other; {again}")
        state[name] = values if scale is None else values.float() * scale[:, None]
    config = MacaronBertConfig.from_pretrained(folder)
    heads = {model.__name__: model for model in AUTO_CLASSES.values()}
    head = (config.architectures or [""])[0]
    if head not in heads:
        raise ValueError(f"{folder}: config.json names the architecture {head!r}; {again}")
    config.dtype = torch.float32
    model, report = heads[head].from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, ignore_mismatched_sizes=True
    )
    wrong = {name for part in ("missing_keys", "unexpected_keys") for name in report[part]}
    wrong |= {name for name, *_ in report["mismatched_keys"]}
    if wrong:
        raise ValueError(f"{file} and {Path(folder, 'config.json')} do not fit each other: {listed(wrong)}; {again}")
    small: PreTrainedModel = packed(model.eval(), "int8")  # type: ignore[assignment]
    return small


# --- text -----------------------------------------------------------------------------------------------------------


def _tokenizer(source: str | os.PathLike[str], config: MacaronBertConfig) -> Any:
    """That of a folder, which cuts what is too long for the model; None where there is none."""
    if not any(Path(source, name).is_file() for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json")):
        return None
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    check_vocabulary(tokenizer, source)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    return tokenizer


def _inputs(model: PreTrainedModel, tokenizer: Any) -> list[str]:
    names = ["input_ids", "attention_mask"]
    segments = model.config.type_vocab_size > 0
    return names + ["token_type_ids"] * (
        segments and (tokenizer is None or "token_type_ids" in tokenizer.model_input_names)
    )


def _write_text(model: PreTrainedModel, tokenizer: Any, folder: Path, form: str) -> None:
    """The tokenizer, with its code where that is this package's, and the configuration."""
    settings = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    if form != "torch-int8":  # transformers, where this package is not, would warn of a type that it does not know
        del settings["model_type"]
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if tokenizer is None:
        return
    if type(tokenizer).__module__.startswith("macaron."):
        tokenizer._auto_map = {"AutoTokenizer": [None, reference(type(tokenizer))]}
        for name, text in sources([type(tokenizer).__module__]).items():
            (folder / name).write_text(text, encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _readme(plain: Plain, form: str, tokenizer: Any, difference: float) -> str:
    name = type(plain.model).__name__
    trust = ", trust_remote_code=True" if type(tokenizer).__module__.startswith("macaron.") else ""
    kind = "pt" if form.startswith("torch") else "np"
    lines = [f'tokenizer = AutoTokenizer.from_pretrained("."{trust})']
    pooling, config = plain.pooling, plain.model.config
    prompt = "" if pooling is None else pooling.prompt
    given = json.dumps([f"{prompt}One sentence.", f"{prompt}Another one."], ensure_ascii=False)
    if type(plain.model) is MacaronBertForMultipleChoice:
        given = '["A question?"] * 2, ["One answer.", "Another one."]'
    text = f'batch = tokenizer({given}, padding=True, truncation=True, return_tensors="{kind}")'
    if type(plain.model) is MacaronBertForMultipleChoice:
        text += "\nbatch = {name: rows[None] for name, rows in batch.items()}  # (questions, choices, tokens)"
    if tokenizer is None:
        lines, text = [], "batch = ...  # this model came without a tokenizer: numbers of words, by the names of inputs"
    if form.startswith("onnx"):
        needs = "onnxruntime"
        lines += ['session = onnxruntime.InferenceSession("model.onnx")', text]
        lines += ['given = {i.name: batch[i.name].astype("int64") for i in session.get_inputs()}']
        lines += ["found = dict(zip([o.name for o in session.get_outputs()], session.run(None, given)))"]
        head = ["import onnxruntime"]
    elif form == "torch-export":
        needs = "torch"
        lines += ['model = torch.export.load("model.pt2").module()', text]
        lines += [f"given = {{name: batch[name] for name in {plain.inputs!r}}}"]
        lines += [f"found = dict(zip({plain.outputs!r}, model(**given)))"]
        head = ["import torch"]
    else:
        needs = "torch and macaron-net[bert]"
        lines += ['model = load_int8(".")', text, "with torch.no_grad():", "    found = model(**batch)"]
        head = ["import torch", "from macaron.bert import load_int8"]
        if plain.pooling is not None:
            lines += ["x, real = found.last_hidden_state, batch['attention_mask'][..., None]"]
            first = "y = x[torch.arange(len(x)), batch['attention_mask'].argmax(1)]"
            lines += [
                "y = (x * real).sum(1) / real.sum(1)" if plain.pooling.mode == "mean" else first,
                "found['sentence_embedding'] = "
                + ("torch.nn.functional.normalize(y)" if plain.pooling.normalize else "y"),
            ]
    wanted = plain.outputs[0]
    lines += [f'print(found["{wanted}"].shape)']
    one_of_several = config.num_labels > 1 and config.problem_type in (None, "single_label_classification")
    if "Classification" in name and one_of_several and tokenizer is not None:
        lines += ['print([labels[str(i)] for i in found["logits"].argmax(-1).ravel().tolist()])']
        lines.insert(0, 'labels = json.load(open("config.json"))["id2label"]')
        head.insert(0, "import json")
    if tokenizer is not None:
        needs += " and transformers"
        head.append("from transformers import AutoTokenizer")
    code = "\n".join([*head, "", *lines])
    prompts = {} if pooling is None else pooling.prompts
    more = f"\nPrompts, to be put before a text: {json.dumps(prompts, ensure_ascii=False)}\n" if prompts else ""
    return (
        f"# {name}, {form}\n\nInputs: {', '.join(plain.inputs)}. Outputs: {', '.join(plain.outputs)}; the greatest "
        f"difference from the model in float32 was {difference:.1e} when this was written. Needs {needs}; run in this "
        f"folder:\n\n```python\n{code}\n```\n{more}"
    )


# --- comparison -----------------------------------------------------------------------------------------------------


def _random(plain: Plain, shapes: list[tuple[int, int]]) -> Iterator[dict[str, Tensor]]:
    """Batches of random words, with padding on the right."""
    config = plain.model.config
    generator = torch.Generator().manual_seed(0)
    for sentences, length in shapes:
        length = min(length, config.max_position_embeddings)
        shape = (sentences, 2, length) if type(plain.model) is MacaronBertForMultipleChoice else (sentences, length)
        lengths = torch.randint(1, length + 1, (*shape[:-1], 1), generator=generator)
        lengths.view(-1)[0] = length
        real = torch.arange(length) < lengths
        ids = torch.randint(1, max(2, config.vocab_size), shape, generator=generator)
        batch = {"input_ids": ids * real, "attention_mask": real.long(), "token_type_ids": torch.zeros_like(ids)}
        yield {name: batch[name] for name in plain.inputs}


def _batches(plain: Plain, tokenizer: Any) -> Iterator[dict[str, Tensor]]:
    yield from _random(plain, [(1, 4), (5, 11), (2, 64)])
    if tokenizer is not None and type(plain.model) is not MacaronBertForMultipleChoice:
        found = tokenizer(_SENTENCES, padding=True, truncation=True, return_tensors="pt")
        yield {name: found[name] for name in plain.inputs}


@torch.no_grad()
def _compare(plain: Plain, reader: Any, tokenizer: Any, form: str) -> tuple[float, float]:
    """The greatest difference, and the greatest relative one, over sample input.

    Raises:
        ValueError: they are too great for the format.
    """
    greatest = relative = scaled = 0.0
    for batch in _batches(plain, tokenizer):
        real = batch["attention_mask"].bool()
        for name, ours, theirs in zip(plain.outputs, plain(**batch), reader(batch), strict=True):
            if ours.shape != theirs.shape:
                raise ValueError(f"{form}: {name} has shape {tuple(theirs.shape)} and not {tuple(ours.shape)}")
            if ours.shape[: real.dim()] == real.shape:  # what stands at padding is read by nobody
                ours, theirs = ours[real], theirs[real]
            gap = (ours - theirs).abs().max().item()
            greatest, scaled = max(greatest, gap), max(scaled, gap / max(1.0, ours.abs().max().item()))
            rms = ((ours - theirs).norm() / ours.norm().clamp(min=1e-12)).item()
            relative = rms if rms != rms else max(relative, rms)
    found, most = (relative, _CLOSE_INT8) if form.endswith("int8") else (scaled, _CLOSE)
    if not found <= most:  # or no number
        raise ValueError(
            f"{form}: on sample input the numbers differ by {greatest:.2g} (relative {relative:.2g}) from those of the "
            f"model, more than is allowed ({most:g}), so nothing was written; take another format"
        )
    return greatest, relative


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy the folder again") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected a {kind.__name__}; copy the folder again")
    return found


__all__ = ["FORMATS", "Exported", "Plain", "Pooling", "export", "load_int8"]
