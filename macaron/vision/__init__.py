"""Images: LM-ResNet, the networks of robust training, DURR's units and DnCNN. Stands on dynamics only."""

from macaron.vision.dncnn import DnCNN
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
    "DnCNN",
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
