"""Splittings and variants as recipes take and name them."""

from collections.abc import Iterator
from typing import Any

import pytest

from macaron.dynamics import solvers
from macaron.dynamics import splitting as module
from macaron.dynamics.scheme import OPTIONS
from macaron.dynamics.solvers import Tableau
from macaron.dynamics.splitting import Splitting, register_splitting
from recipes.common import schemes
from recipes.common.errors import RecipeError
from recipes.common.schemes import Variant, described, folder_name, portable


@pytest.fixture
def registered() -> Iterator[str]:
    yield register_splitting(Splitting.parse("attention/2 ffn attention/2", name="turned")).name
    del module.SPLITTINGS["turned"]


def test_a_name_registered_here_is_passed_on_as_what_it_means(registered: str) -> None:
    assert portable(registered) == portable(" self_attention/2.0  ffn attention/2 ") == "attention/2 ffn attention/2"
    assert portable("ffn/2 attention ffn/2") == portable("strang") == "strang"
    assert portable("attention ffn") == "lie"
    assert portable("ffn/2 attention cross_attention ffn/2") == "ffn/2 attention cross_attention ffn/2"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("macaron", "choose one of strang, lie"),
        ("", "no substeps"),
        ("ffn/2 attention", "add up to 0.5"),
        ("ffn attention/0", "no substep"),
        ("ffn", "is unknown"),
        ("attention/2 attention/2", "no substep follows 'ffn'"),
        ("ffn/2 conv ffn/2 attention", "flow 'conv' is unknown here"),
        (None, "neither a name nor a notation"),
        (3, "neither a name nor a notation"),
    ],
)
def test_what_cannot_be_is_refused_with_its_option(given: object, reason: str) -> None:
    with pytest.raises(RecipeError, match=f"^--splittings {given}: .*{reason}"):
        portable(given, "--splittings")


def test_names_of_folders_and_in_reports() -> None:
    assert folder_name("attention/2 ffn attention/2") == "attention-2-ffn-attention-2"
    assert folder_name("strang") == "strang"
    assert described("strang") == "Macaron (Strang–Marchuk splitting)"
    assert described("attention/2 ffn attention/2") == "splitting attention/2 ffn attention/2"


def test_the_options_are_those_of_both_hosts() -> None:
    assert {name for name, *_ in schemes.OPTIONS} == set(OPTIONS) - {"splitting"}


@pytest.mark.parametrize(
    ("given", "name", "folder"),
    [
        ("strang", "strang", "strang"),
        (" ffn/2 attention ffn/2 , solver=euler", "strang", "strang"),
        ("lie, multistep", "lie,multistep", "lie-multistep"),
        (
            "strang,multistep-init=-0.50,depth-rule=multistep",
            "strang,multistep,multistep_init=-0.5",
            "strang-multistep-multistep_init--0.5",
        ),
        ("attention/2 ffn attention/2,rk4", "attention/2 ffn attention/2,rk4", "attention-2-ffn-attention-2-rk4"),
        ("lie,dt=1.0,stochastic_depth=.2", "lie,stochastic_depth=0.2", "lie-stochastic_depth-0.2"),
        ("lie,rk2_learned", "ode-transformer", "ode-transformer"),
        ("ode-transformer,dt=2", "lie,rk2_learned,dt=2", "lie-rk2_learned-dt-2"),
    ],
)
def test_equal_variants_have_one_spelling(given: str, name: str, folder: str) -> None:
    variant = Variant.parse(given)
    assert variant.name == str(variant) == name and Variant.parse(name) == variant
    assert folder_name(name) == folder
    assert Variant.of(variant.splitting, variant.values) == variant


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("strang,heun", "'heun' is a solver; write solver=heun"),
        ("strang,solver=magic", "solver='magic' is unknown; choose one of euler"),
        ("strang,magic", "'magic' is neither a rule across depth .*euler, multistep"),
        ("strang,splitting=lie", "neither a rule .*with an option of solver, depth_rule"),
        ("multistep", "is unknown; .*A variant begins with a splitting, as in strang,multistep, or with ode-transf"),
        ("strang,multistep,rk2", "depth_rule is there twice"),
        ("ode-transformer,rk4", "depth_rule is there twice"),
        ("strang,dt=fast", "dt='fast' is no number"),
        ("strang,stochastic_depth=1", r"no drop rate in \[0, 1\)"),
        ("strang,multistep,multistep_init=2", r"in \(−1, 1\]"),
        ("strang,multistep_init=0.5", "depth_rule='euler' has none; leave it out"),
        ("strang,stochastic_depth_unit=sentence", "means nothing without stochastic depth"),
        ("strang,", "'' is neither a rule"),
        (3, "neither a name nor a notation"),
    ],
)
def test_variants_that_cannot_be(given: Any, reason: str) -> None:
    with pytest.raises(RecipeError, match=f"^--variants {given}: .*{reason}"):
        Variant.parse(given, "--variants")


def test_what_only_this_process_knows_is_no_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(solvers.SOLVERS, "ours", Tableau("ours", ((),), (1.0,), order=1))
    with pytest.raises(RecipeError, match="solver='ours' is registered in this process alone"):
        Variant.parse("strang,solver=ours")


def test_variants_in_reports() -> None:
    assert Variant.parse("strang").described == "Macaron (Strang–Marchuk splitting)"
    assert Variant.parse("lie,rk4,dt=.5").described == "Transformer (Lie–Trotter splitting), depth rule rk4, dt 0.5"
    assert "here in encoder and decoder" in Variant.parse("ode-transformer").described
