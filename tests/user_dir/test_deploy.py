"""`macaron export` of a released model: the programs, onnxruntime and CTranslate2 find what torch finds."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from macaron.user_dir import deploy

from macaron import MacaronModel, onnx
from macaron.cli import main
from macaron.decoding import BeamSearch
from macaron.decoding.runtime import OnnxSteps, OnnxTranslator

from .test_incremental import SIZES, randomize


@pytest.fixture(scope="module")
def exported(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(release), "--format", "onnx", "--output", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def texts(tiny_corpus: Path) -> list[str]:
    return [*(tiny_corpus / "test.de").read_text(encoding="utf-8").splitlines()[:12], "", "eins"]


@pytest.mark.parametrize("beam", [1, 4])
def test_onnxruntime_translates_as_torch(exported: Path, release: Path, texts: list[str], beam: int) -> None:
    model, other = MacaronModel.from_pretrained(release).eval(), OnnxTranslator(exported, threads=1)
    assert other.translate(texts, beam=beam) == model.translate(texts, beam=beam)
    sources = [model.encode(text) for text in texts if text]
    assert [source.tolist() for source in sources] == [other.encode(text).tolist() for text in texts if text]
    engine = deploy.search(model, beam=beam, nbest=beam)
    ours = dict(engine(deploy.samples(model)))
    # few at a time, so that some leave and others join while the rest goes on
    theirs = dict(BeamSearch(other.steps, engine.symbols, engine.options)(deploy.samples(model), room=3))
    for name, found in ours.items():
        assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in theirs[name]]
        for a, b in zip(found, theirs[name], strict=True):
            torch.testing.assert_close(a.positional_scores, b.positional_scores, rtol=0, atol=1e-4)


def test_a_folder_that_is_damaged(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "copy")
    with pytest.raises(ValueError, match="has 9,999 tokens, and the model takes"):
        OnnxTranslator(folder).generate([torch.full((9999,), 5)])
    told = json.loads((folder / "decoder.json").read_text())
    for change, message in (
        ({"format": 2}, "this version of macaron reads 1"),
        ({"options": {}}, "does not describe a decoder"),
        ({"memory": []}, "do not fit each other"),
        ({"vocabulary": 7}, "words, the decoder 7"),
    ):
        (folder / "decoder.json").write_text(json.dumps({**told, **change}))
        with pytest.raises(ValueError, match=message):
            OnnxTranslator(folder)
    (folder / "decoder.json").write_text(json.dumps(told))
    (folder / "decoder.onnx").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"decoder\.onnx cannot be read by onnxruntime"):
        OnnxTranslator(folder)
    (folder / "encoder.onnx").unlink()
    with pytest.raises(ValueError, match=r"encoder\.onnx is missing"):
        OnnxTranslator(folder)
    (folder / "decoder.json").unlink()
    with pytest.raises(ValueError, match="did not write it"):
        OnnxSteps(folder)


def test_programs_of_another_scheme(release: Path, toy_task: Any) -> None:
    """Two stages of a flow have keys of their own; learned positions; post-norm."""
    task = toy_task(40)
    options = {"splitting": "lie", "solver": "heun", "encoder_layers": 1, "decoder_layers": 1}
    options |= {"decoder_learned_pos": True, "encoder_normalize_before": False, "decoder_normalize_before": False}
    it = MacaronModel.build_model(Namespace(**{**SIZES, **options}), task).eval()
    randomize(it)
    model = MacaronModel.from_pretrained(release)
    model.models[0], model.task = it, _WithGenerator(task, model.task)
    model.longest = it.max_positions()[0]
    with torch.no_grad():
        made, told = deploy.programs(it, task)
        loaded = {name: program.module() for name, program in made.items()}
        steps = deploy.ProgramSteps(loaded, told, model)
        assert "the same tokens as torch" in deploy._compare(model, steps, "torch.export")
    assert len(told["past"]) == 2


class _WithGenerator:
    """A task with the dictionaries of one and the generator of another."""

    def __init__(self, words: Any, whole: Any) -> None:
        self.source_dictionary = self.target_dictionary = words.source_dictionary
        self._whole = whole

    def build_generator(self, models: Any, settings: Any) -> Any:
        before = self._whole.tgt_dict
        self._whole.tgt_dict = self.target_dictionary
        try:
            return self._whole.build_generator(models, settings)
        finally:
            self._whole.tgt_dict = before


@pytest.mark.parametrize("normalize_before", [True, False])
def test_ctranslate2(normalize_before: bool, release: Path, toy_task: Any, tmp_path: Path) -> None:
    task = toy_task(40)
    options = {"encoder_normalize_before": normalize_before, "decoder_normalize_before": normalize_before}
    it = MacaronModel.build_model(Namespace(**{**SIZES, **options, "splitting": "lie"}), task).eval()
    randomize(it)
    model = MacaronModel.from_pretrained(release)
    model.models[0], model.task = it, _WithGenerator(task, model.task)
    with torch.no_grad():
        told = deploy._write_ctranslate2(model, tmp_path)
    assert "log-probability from torch's is" in told
    with torch.no_grad():
        deploy._layers(it.decoder)[0].flows[0].out_proj.weight.mul_(-1)
    translator = deploy._ctranslate2().Translator(str(tmp_path), compute_type="float32")
    with torch.no_grad(), pytest.raises(ValueError, match=r"log-probabilities of sample \d differ"):
        deploy._compare_ctranslate2(model, translator)


def test_what_is_refused(release: Path, exported: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    def refused(*arguments: object) -> str:
        assert main(["export", str(release), *map(str, arguments)]) == 1
        return capsys.readouterr().err

    said = refused("--format", "ctranslate2", "--output", tmp_path / "x")
    assert "CTranslate2 cannot express layers of encoder: ffn, self_attention, ffn" in said
    assert "macaron translate --precision int8" in refused("--format", "torch-int8", "--output", tmp_path / "x")
    assert "is not empty" in refused("--format", "onnx", "--output", exported)
    assert "is the release itself" in refused("--format", "onnx", "--output", release, "--force")
    monkeypatch.setitem(sys.modules, "ctranslate2", None)
    said = refused("--format", "ctranslate2", "--output", tmp_path / "x")
    assert "pip install 'macaron-net[ctranslate2]'" in said
    assert not (tmp_path / "x").exists()


def test_other_translations_are_refused(release: Path, exported: Path, tmp_path: Path, monkeypatch: Any) -> None:
    model = MacaronModel.from_pretrained(release)
    session = onnx.Session.__call__
    monkeypatch.setattr(
        onnx.Session, "__call__",
        lambda self, **given: {name: t * 1.01 if name == "logits" else t for name, t in session(self, **given).items()},
    )  # fmt: skip
    with torch.no_grad(), pytest.raises(ValueError, match="other translations than by torch, or scores that differ"):
        deploy._compare(model, OnnxSteps(exported), "onnxruntime")
