"""Network architectures that timm lacks: LeNet-300-100, LeNet-5, Conv-4, CIFAR ResNets, SqueezeNet and a detector.

Importing this package registers the classifiers with timm, so that ``timm.create_model`` and
:class:`ClassificationModule` build them by name. One file per family; ``common.py`` has the code that they share.
"""

from lightning_compress.models.networks.c2f_detector import C2f, C2fDetector
from lightning_compress.models.networks.cifar_resnet import CifarBlock, CifarResNet
from lightning_compress.models.networks.conv4 import Conv4
from lightning_compress.models.networks.lenet import LeNet5, LeNet300
from lightning_compress.models.networks.squeezenet import Fire, SqueezeNet

__all__ = ["C2f", "C2fDetector", "CifarBlock", "CifarResNet", "Conv4", "Fire", "LeNet5", "LeNet300", "SqueezeNet"]
