"""Splittings as recipes take and name them."""

from collections.abc import Iterator

import pytest

from macaron.dynamics import splitting as module
from macaron.dynamics.splitting import Splitting, register_splitting
from recipes.common.errors import RecipeError
from recipes.common.schemes import described, folder_name, portable


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
