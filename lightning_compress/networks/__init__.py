"""Small networks of the compression literature that timm lacks; importing this package registers them there."""

from lightning_compress.networks.cifar_resnet import CifarBlock, CifarResNet
from lightning_compress.networks.conv4 import Conv4
from lightning_compress.networks.lenet import LeNet5, LeNet300
from lightning_compress.networks.squeezenet import Fire, SqueezeNet

__all__ = ["CifarBlock", "CifarResNet", "Conv4", "Fire", "LeNet5", "LeNet300", "SqueezeNet"]
