"""Images: LM-ResNet, DURR's restoration and policy units, DnCNN. Stands on dynamics only."""

from macaron.vision.dncnn import DnCNN
from macaron.vision.durr import LearnedHorizon, PolicyUnit, RestorationUnit
from macaron.vision.fields import BasicBranch, BottleneckBranch, Residual, Shortcut
from macaron.vision.original import from_original
from macaron.vision.resnet import PUBLISHED, PreActResNet, Stage

__all__ = [
    "PUBLISHED",
    "BasicBranch",
    "BottleneckBranch",
    "DnCNN",
    "LearnedHorizon",
    "PolicyUnit",
    "PreActResNet",
    "Residual",
    "RestorationUnit",
    "Shortcut",
    "Stage",
    "from_original",
]
