"""Small networks of the compression literature that timm lacks; importing this package registers them there."""

from lightning_compress.models.networks.cifar_resnet import CifarBlock, CifarResNet
from lightning_compress.models.networks.conv4 import Conv4
from lightning_compress.models.networks.lenet import LeNet5, LeNet300
from lightning_compress.models.networks.squeezenet import Fire, SqueezeNet

__all__ = ["CifarBlock", "CifarResNet", "Conv4", "Fire", "LeNet5", "LeNet300", "SqueezeNet"]
