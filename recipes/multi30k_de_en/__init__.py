"""Multi30k German–English (Elliott et al. 2016): 29,000 image captions, small enough to learn on one CPU core."""

from ..translation.recipe import Recipe
from ..translation.text import TextSettings

SIZES = {
    "tiny": Recipe(
        name="multi30k_de_en",
        config="tiny",
        text=TextSettings(source="de", target="en", units=8_000),
        metrics="multi30k",
        average=3,
    )
}
