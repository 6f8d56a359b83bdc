"""Images: LM-ResNet, the networks of robust training, DURR's restoration and policy units. Stands on dynamics only."""

from macaron.vision.durr import LearnedHorizon, PolicyUnit, RestorationUnit
from macaron.vision.fields import BasicBranch, BottleneckBranch, Residual, Shortcut
from macaron.vision.original import from_original
from macaron.vision.resnet import PUBLISHED, PreActResNet, Stage
from macaron.vision.small_cnn import SmallCNN
from macaron.vision.wide_resnet import WideBlock, WideResNet, preact18, wrn34

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
    "SmallCNN",
    "Stage",
    "WideBlock",
    "WideResNet",
    "from_original",
    "preact18",
    "wrn34",
]
