"""The options in a checkpoint are data, in whatever form and depth they stand."""

from __future__ import annotations

import ast
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import fairseq
import fairseq_cli
import pytest
from fairseq.models import MODEL_REGISTRY

import macaron
from macaron.checkpoint import _Meter
from macaron.options import EVALUATED, NAMES, find_code, is_literal

macaron.register_fairseq()

CODE = "__import__('os').system('touch WITNESS')"


# What fairseq evaluates that is no option of a checkpoint, and why.
NO_OPTIONS = {
    "x": "the text of a flag, in its own parser and in the functions that evaluate",
    "uf": "the text of a flag, in its own parser",
    "line.strip()": "a line of a data file of speech units",
    "model_overrides": "of the command line that evaluates",
    "getattr(override_args, 'model_overrides', '{}')": "the same",
}


def _evaluated(package: object) -> set[str]:
    """What a package hands to eval, exec and fairseq's functions that evaluate."""
    found = set()
    for path in Path(package.__file__).parent.rglob("*.py"):
        if "examples" in path.parts:  # plugins of their own
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            plain = isinstance(node.func, ast.Name)
            if called in ("eval_str_list", "eval_str_dict", "eval_bool") or (plain and called in ("eval", "exec")):
                what = node.args[0]
                found.add(what.attr if isinstance(what, ast.Attribute) else ast.unparse(what))
    return found


@pytest.mark.parametrize("package", [fairseq, fairseq_cli, macaron, macaron.user_dir])
def test_every_option_that_is_evaluated_is_known(package):
    assert _evaluated(package) - EVALUATED - NO_OPTIONS.keys() == set()


def test_every_registry_is_known():
    from fairseq.registry import REGISTRIES

    assert set(REGISTRIES) <= NAMES


@pytest.mark.parametrize("option", sorted(EVALUATED))
@pytest.mark.parametrize("entry", ["args", "cfg"])
def test_code_in_an_option(option, entry):
    options = Namespace(**{option: CODE}) if entry == "args" else {"model": {option: CODE}}
    found = find_code({entry: options})
    assert f"its option {option} is " in found and "number" in found


class TestPlaces:
    """However deep, and in whatever stands for a namespace."""

    @pytest.mark.parametrize(
        "options",
        [
            {"cfg": {"model": {"w2v_args": {"model": [{"adam_betas": CODE}]}}}},
            {"cfg": {"model": Namespace(adam_betas=CODE)}},
            {"args": Namespace(w2v_args=Namespace(adam_betas=CODE))},
            {"args": Namespace(w2v_args={"x": ({"adam_betas": CODE},)})},
            {"args": Namespace(), "cfg": {"optimizer": {"adam_betas": CODE}}},
        ],
    )
    def test_deep(self, options):
        assert "its option adam_betas is" in find_code(options)

    def test_a_cycle(self):
        options: dict = {"adam_betas": "(0.9, 0.98)"}
        options["self"] = [options]
        assert find_code({"cfg": options}) is None

    def test_a_meter_of_the_original_with_options(self):
        meter = _Meter()
        meter.adam_betas = CODE
        assert "its option adam_betas is" in find_code({"args": Namespace(meter=meter)})
        assert "its entry 'args' is a _Meter, and only a Namespace" in find_code({"args": meter})

    @pytest.mark.parametrize("cfg", [f'model: {{adam_betas: "{CODE}"}}', [], b"", Namespace()])
    def test_a_configuration_that_omegaconf_would_parse(self, cfg):
        assert "its entry 'cfg' is a " in find_code({"cfg": cfg})

    @pytest.mark.parametrize(
        "value",
        [
            *("${oc.env:HOME}", "a ${a.${oc.decode:x}}", ["${oc.create:1}"], "${ oc.env:HOME}", "$${oc.env:HOME}"),
            # the name of a resolver, out of another option
            *("${${model.y}:HOME}", "${oc.${model.y}:HOME}", "${${a.b}}"),
        ],
    )
    def test_resolvers(self, value):
        assert "only plain text may stand there" in find_code({"cfg": {"model": {"x": value}}})

    def test_interpolation_of_a_field_is_left_to_omegaconf(self):
        assert find_code({"args": Namespace(tokens_per_sample="${task.tokens_per_sample}")}) is None
        assert "adaptive_input_cutoff" in find_code({"args": Namespace(adaptive_input_cutoff="${task.x}")})

    @pytest.mark.parametrize(
        "value", ["../../../tmp/evil", "/tmp/evil", "a b", "x=y", "{}", ["../evil"], ("a",), b"a", 3, _Meter()]
    )
    def test_names_are_no_paths(self, value):
        for option in ("bpe", "source_lang"):
            assert "only a name may stand there" in find_code({"args": Namespace(**{option: value})})

    @pytest.mark.parametrize("value", [None, "", "moses", "zh-CN", "pt_BR", {"_name": "x"}, Namespace(task="x")])
    def test_names(self, value):
        assert find_code({"cfg": {"model": {"tokenizer": value, "target_lang": value}}}) is None


@pytest.mark.parametrize(
    "value",
    [
        *("(0.9, 0.98)", "20000,60000", "[5, 6]", "1", "-1e-8", "(1e-30, 1e-3)", "True", "None", "", " [True, False] "),
        *("[(512, 3)] * 20", "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"),
        *('{"name": "scaled_dot_product", "dropout": 0.1}', "('/models/kenlm.bin', '/models/lexicon.txt', 1.5, -1)"),
        *(None, 6, 0.5, True, [20000, 60000], (0.9, 0.98), {"name": "fmha"}, ["1", 2]),
    ],
)
def test_plain_values(value):
    assert is_literal(value)


@pytest.mark.parametrize(
    "value",
    [
        *(CODE, f"[{CODE}]", f"[1, *{CODE}]", f"(lambda: {CODE})()", f"{{**{CODE}}}", f"[x for x in {CODE}]"),
        *(f"f'{{{CODE}}}'", f"['a', f'{{{CODE}}}']", f"1 if {CODE} else 2", f"1, {CODE}", f"(x := {CODE})", "print"),
        *(
            "'text'",
            "9**9**9",
            "[0] * 10**9",
            "[0] * 10000000",
            "[[0] * 1000 * 1000]",
            "1 << 9999",
            "(1",
            "--1",
            "1.real",
        ),
        # rewritten by hydra or OmegaConf on their way
        *(r"['\'+print()+\'']", "['${x}']", r"['\x41']", "['a b']", "[''']"),
        *(
            CODE.encode(),
            bytearray(CODE.encode()),
            [CODE.encode()],
            Namespace(),
            object(),
            "(" * 9000,
            "-" * 9000 + "1",
        ),
    ],
)
def test_what_is_more_than_a_value(value):
    assert not is_literal(value)


def test_fairseqs_own_defaults_are_plain():
    values = [
        field.default
        for model in MODEL_REGISTRY.values()
        for config in [getattr(model, "__dataclass", None)]
        if config is not None
        for field in fields(config)
        if field.name in EVALUATED and not str(field.default).startswith("${")
    ]
    assert len(values) > 20
    assert [value for value in values if isinstance(value, str) and not is_literal(value)] == []


def test_fairseqs_convolutional_architectures_are_plain():
    from fairseq.models import ARCH_CONFIG_REGISTRY

    convolutional = {name: c for name, c in ARCH_CONFIG_REGISTRY.items() if name.startswith("fconv")}
    assert len(convolutional) > 4
    for name, complete in convolutional.items():
        args = Namespace()
        complete(args)
        assert find_code({"args": args}) is None, name
        assert "[(" in args.decoder_layers
