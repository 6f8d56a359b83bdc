"""Images: LM-ResNet, and DURR's restoration and policy units. Stands on dynamics only."""

from macaron.vision.durr import LearnedHorizon, PolicyUnit, RestorationUnit
from macaron.vision.fields import BasicBranch, BottleneckBranch, Residual, Shortcut
from macaron.vision.original import from_original
from macaron.vision.resnet import PUBLISHED, PreActResNet, Stage

__all__ = [
    "PUBLISHED",
    "BasicBranch",
    "BottleneckBranch",
    "LearnedHorizon",
    "PolicyUnit",
    "PreActResNet",
    "Residual",
    "RestorationUnit",
    "Shortcut",
    "Stage",
    "from_original",
]
