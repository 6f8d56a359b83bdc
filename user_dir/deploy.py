"""A released model in a folder for where it is used: as ONNX, as programs of torch.export, or for CTranslate2.

onnx          encoder.onnx and decoder.onnx with `macaron.decoding.runtime.OnnxTranslator`, which needs no fairseq
torch-export  encoder.pt2, first.pt2 and later.pt2, the first and the later steps of the decoder, for torch.export.load
ctranslate2   for `ctranslate2.Translator`: layers of the Transformer alone, as no other splitting, solver, step or rule
              can be expressed there
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import open_dict
from torch import Tensor, nn

from macaron import onnx
from macaron.decoding import BeamSearch, Hypothesis, Source
from macaron.decoding.runtime import DECODER, DESCRIPTION, ENCODER, VOCABULARY, OnnxSteps, describe
from macaron.dynamics.depth import euler
from macaron.dynamics.splitting import CROSS_ATTENTION, FFN, SELF_ATTENTION
from macaron.hf.folders import check_free, put

from . import released
from .decoding import Generator, Steps, _layers
from .hub import ReleasedModel
from .translate import open_model

FORMATS = ("onnx", "torch-export", "ctranslate2")
_CLOSE = 1e-4  # of scores
_LONGEST = 40  # tokens of sample translations


def export(folder: Path, out: Path, form: str, *, force: bool = False) -> list[str]:
    """Write a released model into a folder for where it is used, and compare what it finds there.

    Args:
        folder: of the release.
        out: the folder to write; it is complete or not there.
        form: one of `FORMATS`.
        force: write into `out` though there is something in it.

    Returns:
        What there is to say, a line each.

    Raises:
        FileExistsError: something is in `out`.
        ImportError: a library of the format is missing.
        ValueError: a model or a search that the format does not know, or other translations or scores.
    """
    if form not in FORMATS:
        raise ValueError(
            f"format {form!r} is not for a translation model; choose one of {', '.join(FORMATS)} (8 bits: macaron "
            f"translate --precision int8, or ctranslate2 with compute_type='int8')"
        )
    out = Path(os.path.realpath(out))  # a link to a folder stays one
    if out == folder.resolve():
        raise ValueError(f"{out} is the release itself; name another folder")
    check_free(out, force)
    if form == "ctranslate2":
        _ctranslate2()
    elif form == "onnx":
        onnx.check_libraries()
    model = open_model(folder, "cpu")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch, torch.no_grad():
        complete = Path(scratch, "complete")
        complete.mkdir()
        write = {"onnx": _write_onnx, "torch-export": _write_programs, "ctranslate2": _write_ctranslate2}
        told = write[form](model, complete)
        text = released.read(folder).text
        for name in (released.DESCRIPTION, text.released_name):
            shutil.copyfile(folder / name, complete / name)
        (complete / "README.md").write_text(_README[form].format(told), encoding="utf-8")
        put(complete, out)
    return [f"exported {folder} as {form} into {out}; README.md there has code that runs it", told]


def search(model: ReleasedModel, **options: Any) -> BeamSearch:
    """The search of a release, with `options` in place of its own.

    Raises:
        ValueError: fairseq's generator alone knows it.
    """
    settings = copy.deepcopy(model.cfg.generation)
    with open_dict(settings):
        for name, value in {**model.generation, **options}.items():
            setattr(settings, name, value)
    generator = model.task.build_generator(model.models, settings)
    if not isinstance(generator, Generator) or generator.left:
        left = getattr(generator, "left", "this search")
        raise ValueError(f"{left} is known to fairseq's generator alone, and cannot be exported")
    return generator.engine(left_pad=False)


# --- encoder and decoder as programs ----------------------------------------------------------------------------------


class Traced:
    """In the place of a `Lattice`: attention to keys and values that come and go as tensors."""

    def __init__(self, now: int, hidden: Tensor, memory: dict[str, list[Tensor]], mask: Tensor | None) -> None:
        self.now, self.mask, self._memory = now, mask, memory
        self._hidden = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[:, None, None]
        self.past: dict[str, list[Tensor]] = {}
        self.new: dict[str, list[Tensor]] = {}
        self.places = 1

    def attend(self, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (self._by_sentence(t) for t in (q, k, v))  # (B, H, K, D)
        self.new[name] = [k, v]
        own = torch.zeros(self.places, self.places).masked_fill(~torch.eye(self.places, dtype=torch.bool), -torch.inf)
        mask = own[None, None].expand(q.size(0), -1, -1, -1)
        if self.mask is not None:
            mask = torch.cat([self.mask, mask], -1)
            k, v = (torch.cat([old, new], 2) for old, new in zip(self.past[name], (k, v), strict=True))
        return self._by_place(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def attend_memory(self, name: str, q: Tensor) -> Tensor:
        k, v = self._memory[name]
        return self._by_place(F.scaled_dot_product_attention(self._by_sentence(q), k, v, attn_mask=self._hidden))

    def _by_sentence(self, t: Tensor) -> Tensor:
        return t.squeeze(2).unflatten(0, (-1, self.places)).transpose(1, 2)

    def _by_place(self, t: Tensor) -> Tensor:
        return t.transpose(1, 2).flatten(0, 1)[:, :, None]


class EncoderProgram(nn.Module):
    """Tokens (B, S), padded on the right → hidden (B, S), True at padding, and each memory's keys and values."""

    def __init__(self, encoder: Any, decoder: Any, longest: int) -> None:
        super().__init__()
        self.encoder, self.padding = encoder, encoder.padding_idx
        layers = enumerate(_layers(decoder))
        flows = {f"{n}.{flow.cache_suffix}": flow for n, layer in layers for flow in layer.flows if _is_cross(flow)}
        self.names, self.flows = list(flows), nn.ModuleList(flows.values())
        if encoder.embed_positions is not None:
            _table(encoder.embed_positions, longest)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        encoder = self.encoder
        hidden = tokens.eq(self.padding)
        x = encoder.embed_scale * encoder.embed_tokens(tokens)  # (B, S, C)
        if encoder.embed_positions is not None:
            real = (~hidden).long()
            x = x + _table(encoder.embed_positions)[real.cumsum(1) * real + self.padding]
        if encoder.layernorm_embedding is not None:
            x = encoder.layernorm_embedding(x)
        x = x.masked_fill(hidden[..., None], 0.0).transpose(0, 1)
        for layer in encoder.layers:
            x = layer(x, encoder_padding_mask=hidden)
        if encoder.layer_norm is not None:
            x = encoder.layer_norm(x)
        return hidden, *(t for flow in self.flows for t in flow.split(flow.kv_proj(x), 2))


class DecoderProgram(nn.Module):
    """One step: logits, and the keys and values of the new cells. See `macaron.decoding.runtime` for the shapes."""

    def __init__(self, decoder: Any, vocabulary: int, memory: list[str], longest: int) -> None:
        super().__init__()
        self.decoder, self.memory, self.longest = decoder, memory, longest
        self.steps = Steps(None, decoder, vocabulary)
        self.names: list[str] = []  # of the keys and values, once a step has been taken
        if decoder.embed_positions is not None:
            _table(decoder.embed_positions, longest)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        hidden: Tensor,
        memory: list[Tensor],
        mask: Tensor | None = None,
        past: list[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        traced = Traced(self.longest - 1, hidden, _pairs(self.memory, memory), mask)
        traced.places = tokens.size(1)
        if past is not None:
            traced.past = _pairs(self.names, past)
        self.steps.use(traced)
        logits = self.steps.step(traced, tokens, positions)  # type: ignore[arg-type]
        self.names = list(traced.new)
        return logits, *(t for pair in traced.new.values() for t in pair)


def _is_cross(flow: Any) -> bool:
    return getattr(flow, "kind", None) == CROSS_ATTENTION


def _pairs(names: list[str], tensors: list[Tensor]) -> dict[str, list[Tensor]]:
    return {name: [k, v] for name, k, v in zip(names, tensors[::2], tensors[1::2], strict=True)}


def _table(positions: Any, longest: int = 0) -> Tensor:
    """The rows of positions, learned or sinusoidal; of the latter at least so many."""
    if isinstance(positions, nn.Embedding):
        return positions.weight
    least = longest + positions.padding_idx + 2
    if least > positions.weights.size(0):
        made = positions.get_embedding(least, positions.embedding_dim, positions.padding_idx)
        positions.weights = made.to(positions.weights)
    found: Tensor = positions.weights
    return found


def programs(it: Any, task: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder, the first and the later steps of the decoder by torch.export, and what they are named by.

    Args:
        it: a translation model that `macaron.user_dir.decoding.unknown` has nothing against.
        task: with its dictionaries.

    Returns:
        Programs by the names encoder, first and later, and the entries `vocabulary`, `longest`, `memory` and `past` of
        decoder.json.

    Raises:
        ValueError: a model that cannot be exported.
    """
    sizes, vocabulary = it.max_positions(), len(task.target_dictionary)
    encoder = EncoderProgram(it.encoder, it.decoder, sizes[0]).eval()
    decoder = DecoderProgram(it.decoder, vocabulary, encoder.names, sizes[1]).eval()
    source = torch.randint(4, max(5, len(task.source_dictionary)), (3, 7))
    source[1, 5:] = encoder.padding
    hidden, *memory = encoder(source)
    step = {"tokens": torch.full((3, 2), 2), "positions": torch.zeros(3).long(), "hidden": hidden, "memory": memory}
    _, *new = decoder(**step)
    two = [torch.cat([t, t], 2) for t in new]
    later = {**step, "mask": torch.zeros(3, 1, 2, 4), "past": two}
    made = {"encoder": onnx.program(encoder, {"tokens": source}), "first": onnx.program(decoder, step)}
    made["later"] = onnx.program(decoder, later)
    past = {name: [k.size(1), k.size(3)] for name, (k, _) in _pairs(decoder.names, new).items()}
    return made, {"vocabulary": vocabulary, "longest": sizes[0], "memory": encoder.names, "past": past}


def _write_programs(model: ReleasedModel, folder: Path) -> str:
    search(model)  # says what it does not know
    made, told = programs(model.models[0], model.task)
    for name, program in made.items():
        torch.export.save(program, folder / f"{name}.pt2")
    _describe(search(model), folder, told)
    _write_words(model.task, folder)
    loaded = {name: torch.export.load(folder / f"{name}.pt2").module() for name in made}
    return _compare(model, ProgramSteps(loaded, told, model), "torch.export")


class ProgramSteps(OnnxSteps):
    """The same steps by the programs of torch.export."""

    def __init__(self, loaded: dict[str, Any], told: dict[str, Any], model: ReleasedModel) -> None:
        self.vocabulary, self.memory, self.past = told["vocabulary"], told["memory"], told["past"]
        self.symbols = search(model).symbols
        self._encoder = lambda tokens: dict(enumerate(loaded["encoder"](tokens=tokens)))  # type: ignore[assignment]
        self._decoder = lambda **given: dict(enumerate(self._step(loaded, given)))  # type: ignore[assignment]

    def _step(self, loaded: dict[str, Any], given: dict[str, Tensor]) -> Any:
        first = {name: given[name] for name in ("tokens", "positions", "hidden")}
        first["memory"] = [given[f"memory_{i}"] for i in range(2 * len(self.memory))]  # type: ignore[assignment]
        if given["mask"].size(-1) == 0:
            return loaded["first"](**first)
        past = [given[f"past_{i}"] for i in range(2 * len(self.past))]
        return loaded["later"](**first, mask=given["mask"], past=past)


def _write_onnx(model: ReleasedModel, folder: Path) -> str:
    write_onnx(model.models[0], model.task, search(model), folder)
    _write_words(model.task, folder)
    return _compare(model, OnnxSteps(folder, torch.get_num_threads()), "onnxruntime")


def write_onnx(it: Any, task: Any, engine: BeamSearch, folder: Path) -> None:
    """What `OnnxSteps` reads, with the options of a search."""
    made, told = programs(it, task)
    pairs = [f"{part} {name}" for name in told["memory"] for part in "kv"]
    onnx.write(made["encoder"], folder / ENCODER, ["hidden", *(f"memory {pair}" for pair in pairs)])
    new = [f"new {part} {name}" for name in told["past"] for part in "kv"]
    onnx.write(made["later"], folder / DECODER, ["logits", *new])
    _describe(engine, folder, told)


def _describe(engine: BeamSearch, folder: Path, told: dict[str, Any]) -> None:
    content = describe(told, engine.symbols, engine.options)
    (folder / DESCRIPTION).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_words(task: Any, folder: Path) -> None:
    words = {"source": task.source_dictionary.symbols, "target": task.target_dictionary.symbols}
    (folder / VOCABULARY).write_text(json.dumps(words, ensure_ascii=False) + "\n", encoding="utf-8")


# --- comparison -------------------------------------------------------------------------------------------------------


def samples(model: ReleasedModel, most: int = _LONGEST) -> Iterator[Source]:
    """Sentences of random words."""
    generator = torch.Generator().manual_seed(0)
    words, end = len(model.task.source_dictionary), model.task.source_dictionary.eos()
    options = search(model).options
    for name, length in enumerate((1, 2, 3, 5, 8, 13)):
        size = int(min(length + 1, model.longest))
        tokens = torch.randint(4, max(5, words), (size,), generator=generator)
        tokens[-1] = end
        yield Source(name, tokens, max(options.min_len, min(most, options.most(size))), size)


def _compare(model: ReleasedModel, steps: Any, what: str) -> str:
    """Greedy and beam search over `steps` and over the model itself find the same.

    Raises:
        ValueError: they do not.
    """
    greatest = 0.0
    for beam in {1, model.generation["beam"]}:
        engine = search(model, beam=beam)
        ours = dict(engine(samples(model)))
        theirs = dict(BeamSearch(steps, engine.symbols, engine.options)(samples(model)))
        for name, found in ours.items():
            greatest = max(greatest, _difference(found, theirs[name], f"{what}, beam {beam}, sample {name + 1}"))
    beams = " and ".join(str(beam) for beam in sorted({1, model.generation["beam"]}))
    return f"{what}: the same tokens as torch with beam {beams}; greatest difference of a score {greatest:.1e}"


def _difference(ours: list[Hypothesis], theirs: list[Hypothesis], where: str) -> float:
    gaps = [abs(float(a.score - b.score)) for a, b in zip(ours, theirs, strict=True)]
    if any(a.tokens.tolist() != b.tokens.tolist() for a, b in zip(ours, theirs, strict=True)) or not max(gaps) < _CLOSE:
        raise ValueError(
            f"{where}: other translations than by torch, or scores that differ by {max(gaps):.2g} (allowed "
            f"{_CLOSE:g}), so nothing was written"
        )
    return max(gaps)


# --- CTranslate2 ------------------------------------------------------------------------------------------------------


def _ctranslate2() -> Any:
    try:
        import ctranslate2
    except ImportError as error:
        raise ImportError("no module named 'ctranslate2'; pip install 'macaron-net[ctranslate2]'") from error
    return ctranslate2


def inexpressible(it: Any) -> str:
    """What of a model CTranslate2 has no words for; "" if there is nothing."""
    kinds = {"encoder": [SELF_ATTENTION, FFN], "decoder": [SELF_ATTENTION, CROSS_ATTENTION, FFN]}
    for side, wanted in kinds.items():
        part = getattr(it, side)
        for layer in _layers(part):
            found = [getattr(flow, "kind", type(flow).__name__) for flow in layer.flows]
            if found != wanted:
                return f"layers of {side}: {', '.join(found)}; its own are {', '.join(wanted)} (--splitting lie)"
            if not layer.fused or layer.gates is not None or set(layer.steps) != {1.0}:
                return f"the solver {layer.solver.name} with steps {layer.steps}; its own is euler, with steps of 1"
        if part.layers.rule is not euler:
            return "a rule across depth; its own is euler's"
        if part.embed_positions is None:
            return "a model without positions"
    layers = [*_layers(it.encoder), *_layers(it.decoder)]
    if len({(layer.normalize_before, layer.flows[0].num_heads) for layer in layers}) != 1:
        return "an encoder and a decoder of different numbers of heads, or places of norms"
    activations = {layer.flows[-1].activation for layer in layers}
    if len(activations) != 1 or not activations <= set(_ACTIVATIONS):
        return f"activations {', '.join(sorted(activations))}; one of {', '.join(_ACTIVATIONS)} for all layers"
    if it.decoder.adaptive_softmax is not None or it.decoder.project_in_dim is not None:
        return "an adaptive softmax, or embeddings of another width"
    return ""


_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "silu": "SWISH"}


def _write_ctranslate2(model: ReleasedModel, folder: Path) -> str:
    ctranslate2 = _ctranslate2()
    it = model.models[0]
    if reason := inexpressible(it):
        raise ValueError(f"CTranslate2 cannot express {reason}; export as onnx instead")
    _specification(ctranslate2, it, model.task).save(str(folder))
    threads = torch.get_num_threads()
    translator = ctranslate2.Translator(str(folder), compute_type="float32", inter_threads=1, intra_threads=threads)
    return _compare_ctranslate2(model, translator)


def _specification(ctranslate2: Any, it: Any, task: Any) -> Any:
    """The parameters under CTranslate2's names; its packed products lie as ours do."""
    from ctranslate2.converters import fairseq as converter
    from ctranslate2.specs import TransformerSpec, common_spec

    first = _layers(it.encoder)[0]
    spec = TransformerSpec.from_config(
        (len(_layers(it.encoder)), len(_layers(it.decoder))),
        first.flows[0].num_heads,
        pre_norm=first.normalize_before,
        no_final_norm=first.normalize_before and it.encoder.layer_norm is None,
        activation=getattr(common_spec.Activation, _ACTIVATIONS[first.flows[-1].activation]),
        layernorm_embedding=it.encoder.layernorm_embedding is not None,
    )
    for part, to in ((it.encoder, spec.encoder), (it.decoder, spec.decoder)):
        _table(part.embed_positions, it.max_positions()[part is it.decoder])
        converter.set_input_layers(to, part)
        for norm in ("layer_norm", "layernorm_embedding"):
            if getattr(part, norm) is not None:
                converter.set_layer_norm(getattr(to, norm), getattr(part, norm))
        for layer, place in zip(_layers(part), to.layer, strict=True):
            parts = [place.self_attention, *([place.attention] if part is it.decoder else []), place.ffn]
            for flow, norm, target in zip(layer.flows, layer.norms, parts, strict=True):
                converter.set_layer_norm(target.layer_norm, norm)
                names = ("qkv_proj", "q_proj", "kv_proj", "out_proj")
                products = [getattr(flow, name) for name in names if hasattr(flow, name)]
                if flow.kind == FFN:
                    converter.set_linear(target.linear_0, flow.fc1)
                    converter.set_linear(target.linear_1, flow.fc2)
                    continue
                for linear, product in zip(target.linear, products, strict=True):
                    converter.set_linear(linear, product)
    converter.set_linear(spec.decoder.projection, it.decoder.output_projection)
    spec.register_source_vocabulary(converter._get_vocab(task.source_dictionary))
    spec.register_target_vocabulary(converter._get_vocab(task.target_dictionary))
    spec.config.decoder_start_token = spec.config.eos_token
    spec.config.add_source_eos = True
    spec.validate()
    spec.optimize()
    return spec


def _compare_ctranslate2(model: ReleasedModel, translator: Any) -> str:
    """The probabilities of what torch finds, word by word: the two searches count lengths each in its own way."""
    source, target = model.task.source_dictionary, model.task.target_dictionary
    works = {one.name: one for one in samples(model)}
    engine = search(model, beam=1)
    found = {name: hypotheses[0] for name, hypotheses in engine(works.values())}
    names = list(found)
    words = [[source[i] for i in works[name].tokens[:-1].tolist()] for name in names]
    wanted = [[target[i] for i in found[name].tokens[:-1].tolist()] for name in names]
    greatest = 0.0
    for name, scored in zip(names, translator.score_batch(words, wanted), strict=True):
        theirs, ours = torch.tensor(scored.log_probs), found[name].positional_scores
        gap = float((theirs - ours).abs().max()) if theirs.shape == ours.shape else float("inf")
        if not gap < _CLOSE:
            raise ValueError(
                f"CTranslate2: log-probabilities of sample {name + 1} differ by {gap:.2g} (allowed {_CLOSE:g}), so "
                f"nothing was written"
            )
        greatest = max(greatest, gap)
    return f"CTranslate2: the greatest difference of a word's log-probability from torch's is {greatest:.1e}"


_README = {
    "onnx": """# A translation model for onnxruntime

{}. Needs macaron-net[export] and, for text, what text.json names: sacremoses, subword-nmt or sentencepiece; no fairseq.
Run in this folder:

```python
from macaron.decoding.runtime import OnnxTranslator

translator = OnnxTranslator(".")
print(translator.translate(["A sentence of the source language."], beam=5))
```
""",
    "torch-export": """# A translation model by torch.export

{}. Inputs and outputs are those that `macaron.decoding.runtime` lists; first.pt2 is a step without earlier cells.

```python
import torch

encoder, first, later = (torch.export.load(f"{{name}}.pt2").module() for name in ("encoder", "first", "later"))
hidden, *memory = encoder(tokens=torch.tensor([[5, 6, 2]]))
step = {{"tokens": torch.tensor([[2]]), "positions": torch.tensor([0]), "hidden": hidden, "memory": memory}}
logits, *past = first(**step)
step |= {{"tokens": logits.argmax(-1, keepdim=True), "positions": torch.tensor([1])}}
logits, *new = later(**step, mask=torch.zeros(1, 1, 1, 1), past=past)
```
""",
    "ctranslate2": """# A translation model for CTranslate2

{}. Needs ctranslate2; text.json says how text becomes pieces. compute_type="int8" computes in 8 bits.

```python
import ctranslate2

translator = ctranslate2.Translator(".", compute_type="float32")
pieces = ["a", "sen@@", "tence", "in", "pieces"]
print(translator.translate_batch([pieces], beam_size=5)[0].hypotheses[0])
```
""",
}
