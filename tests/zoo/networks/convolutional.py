"""Convolutional classifiers, large and compact."""

from __future__ import annotations

import timm
from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d, InceptionAux
from torchvision.models.googlenet import Inception as InceptionBlock

from tests.zoo.subject import Example, pink_noise


def images(size: int = 32, num: int = 8) -> Tensor:
    return pink_noise(num, 3, size, size)


def resnet() -> Example:
    """timm: ResNet-18, the norms of which begin with zero weights."""
    return timm.create_model("resnet18", num_classes=10), images(64, num=4)


def senet() -> Example:
    """timm: ResNeXt with squeeze-and-excitation and anti-aliased pools."""
    network = timm.create_model(
        "seresnext26d_32x4d", num_classes=10, layers=(1, 1, 1, 1), aa_layer=timm.layers.BlurPool2d
    )
    return network, images(64, num=4)


def res2net() -> Example:
    """timm: Res2Net, splits of the channels within a block."""
    return timm.create_model("res2net50_26w_4s", num_classes=10, layers=(1, 1, 1, 1)), images(64, num=4)


def bit() -> Example:
    """timm: BiT, group norms and standardized weights."""
    from timm.layers import StdConv2d
    from timm.models.resnetv2 import ResNetV2

    network = ResNetV2([1, 1, 1], (128, 128, 128), 10, stem_chs=32, stem_type="fixed", conv_layer=StdConv2d)
    nn.init.normal_(network.head.fc.weight, std=0.1)
    return network, images()


def nfnet() -> Example:
    """timm: NFNet, scaled standardized weights and no norms."""
    from timm.models.nfnet import NfCfg, NormFreeNet

    config = NfCfg(
        depths=(1, 1), channels=(64, 96), group_size=16, bottle_ratio=0.5, num_features=128, act_layer="silu"
    )
    network = NormFreeNet(config, num_classes=10)
    nn.init.normal_(network.head.fc.weight, std=0.1)
    return network, images()


def densenet() -> Example:
    """torchvision: DenseNet, norms before convolutions on concatenations."""
    from torchvision.models import DenseNet

    return DenseNet(8, (2, 2, 2), 16, num_classes=10), images(64)


class Inception(nn.Module):
    """Inception blocks of torchvision's GoogLeNet, with an auxiliary head in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(BasicConv2d(3, 16, kernel_size=3, stride=2, padding=1), nn.MaxPool2d(3, 2, 1))
        self.first = InceptionBlock(16, 8, 8, 16, 4, 8, 8)
        self.second = InceptionBlock(40, 16, 8, 16, 4, 8, 8)
        self.auxiliary, self.logits = InceptionAux(40, 10), nn.Linear(48, 10)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.first(self.stem(x))
        extra = self.auxiliary(x) if self.training else None
        logits = self.logits(self.dropout(self.second(x).mean((2, 3))))
        return logits if extra is None else (logits, extra)


def inception() -> Example:
    """torchvision: GoogLeNet's blocks with an auxiliary head in training only."""
    return Inception(), images()


def vgg() -> Example:
    """timm: VGG-11 with norms, a narrow one."""
    return timm.models.VGG([16, "M", 32, "M", 64, "M", 64, "M"], 10, mlp_ratio=0.02, norm_layer=nn.BatchNorm2d), images(
        32, num=4
    )


def repvgg() -> Example:
    """timm: RepVGG with its three branches, before they are merged."""
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(ByoBlockCfg("rep", d=2, c=width, s=2, gs=0) for width in (24, 32))
    return ByobNet(ByoModelCfg(blocks, stem_type="rep", stem_chs=16), num_classes=10), images()


def convnext() -> Example:
    """timm: ConvNeXt, layer norms over channels and tiny scales of branches."""
    network = timm.create_model("convnext_atto", num_classes=10, depths=(1, 1, 2, 1), dims=(16, 32, 48, 64))
    return network, images(64, num=4)


def mobilenet_v3() -> Example:
    """torchvision: MobileNetV3 with squeeze-and-excitation and hard-swish."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(16, 5, 48, 24, True, "HS", 2, 1, 1.0),
        InvertedResidualConfig(24, 5, 48, 24, True, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3(blocks, 64, num_classes=10), images()


def mobilenet_v4_of(*stages: list[str]) -> Example:
    """Return timm's MobileNetV4 of some stages in timm's notation."""
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv3 import MobileNetV3

    return MobileNetV3(decode_arch_def([*stages]), num_classes=10, stem_size=16, num_features=64), images()


def mobilenet_v4() -> Example:
    """timm: MobileNetV4, universal inverted bottlenecks."""
    return mobilenet_v4_of(
        ["cn_r1_k3_s2_e1_c16"], ["uir_r1_a5_k5_s2_e3_c24", "uir_r1_a0_k3_s1_e2_c24"], ["uir_r1_a3_k0_s1_e4_c32"]
    )


def mobilenet_v4_hybrid() -> Example:
    """timm: MobileNetV4 with multi-query attention."""
    return mobilenet_v4_of(["uir_r1_a5_k5_s2_e3_c24"], ["mqa_r1_k3_h2_s1_v1_d16_c24", "uir_r1_a0_k3_s2_e2_c32"])


def efficientnet() -> Example:
    """torchvision: EfficientNet with stochastic depth."""
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    blocks = [MBConvConfig(1, 3, 1, 32, 16, 1), MBConvConfig(4, 3, 2, 16, 24, 2), MBConvConfig(4, 5, 2, 24, 32, 1)]
    return EfficientNet(blocks, 0.2, stochastic_depth_prob=0.2, num_classes=10, last_channel=64), images()


def shufflenet() -> Example:
    """torchvision: ShuffleNetV2."""
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 2, 1], [16, 32, 48, 64, 64], num_classes=10), images()


def squeezenet() -> Example:
    """torchvision: SqueezeNet, no norms, a convolution as classifier."""
    from torchvision.models import squeezenet1_1

    return squeezenet1_1(num_classes=10), images(64)


def fastvit() -> Example:
    """timm: FastViT, branches to be merged, large kernels, attention in the last stage."""
    from timm.models.fastvit import FastVit

    network = FastVit(
        layers=(1, 1), token_mixers=("repmixer", "attention"), embed_dims=(16, 32), mlp_ratios=(2, 2),
        downsamples=(False, True), num_classes=10, cls_ratio=1.0,
    )  # fmt: skip
    return network, images()
