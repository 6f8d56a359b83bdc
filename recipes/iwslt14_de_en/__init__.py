"""IWSLT14 German–English, as in the paper: lower-cased, joint BPE of 10,000 merges, one dictionary."""

from ..translation.recipe import Recipe
from ..translation.text import TextSettings

SIZES = {
    "small": Recipe(
        name="iwslt14_de_en",
        config="small",
        text=TextSettings(source="de", target="en", lowercase=True, units=10_000),
        metrics="iwslt14",
        average=10,  # ours: the paper does not say
    )
}
