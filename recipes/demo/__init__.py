"""Translation learned in minutes from sentences about numbers, dates and prices, which are made on the spot."""

from ..translation.recipe import Recipe
from ..translation.text import TextSettings

SIZES = {
    "tiny": Recipe(
        name="demo",
        config="tiny",
        text=TextSettings(source="de", target="en", aggressive_hyphens=True, units=400),
        metrics="multi30k",
        average=3,
    )
}
