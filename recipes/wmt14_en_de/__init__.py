"""WMT14 English–German, as in the paper: cased, joint BPE of 32,000 merges, one dictionary."""

from ..translation.recipe import Recipe
from ..translation.text import TextSettings

_TEXT = TextSettings(source="en", target="de", aggressive_hyphens=True, units=32_000)

# The last 20 checkpoints are averaged as by Vaswani et al. 2017 for their big model; the paper does not say.
SIZES = {
    size: Recipe("wmt14_en_de", config=size, text=_TEXT, metrics="wmt14", average=20, valid="newstest2013")
    for size in ("base", "big")
}
