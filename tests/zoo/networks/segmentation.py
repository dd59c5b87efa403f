"""Segmentation: U-Nets and relatives in two and three dimensions."""

from __future__ import annotations

from torch import Tensor

from tests.zoo.subject import Example, pink_noise

SMP = {"encoder_weights": None, "encoder_depth": 3, "classes": 3}


def images(size: int = 64) -> Tensor:
    return pink_noise(2, 3, size, size)


def volumes(size: int = 16, channels: int = 1) -> Tensor:
    return pink_noise(2, channels, size, size, size)


def unet() -> Example:
    """segmentation_models_pytorch: U-Net on a ResNet-18."""
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", decoder_channels=(32, 16, 16), **SMP), images()


def unet_plus_plus() -> Example:
    """segmentation_models_pytorch: U-Net++ with attention gates (scSE) on a MobileNetV3."""
    import segmentation_models_pytorch as smp

    encoder = "timm-mobilenetv3_small_minimal_100"
    channels = (32, 16, 16)
    return smp.UnetPlusPlus(encoder, decoder_channels=channels, decoder_attention_type="scse", **SMP), images()


def deeplab() -> Example:
    """segmentation_models_pytorch: DeepLabV3+ with dilated convolutions on a MobileNetV2."""
    import segmentation_models_pytorch as smp

    return smp.DeepLabV3Plus("mobilenet_v2", decoder_channels=32, decoder_atrous_rates=(2, 4, 6), **SMP), images()


def pyramid_attention() -> Example:
    """segmentation_models_pytorch: multi-scale attention network on a ResNet-18."""
    import segmentation_models_pytorch as smp

    return smp.MAnet("resnet18", decoder_channels=(32, 16, 16), decoder_pab_channels=16, **SMP), images()


def linknet() -> Example:
    """segmentation_models_pytorch: LinkNet with transposed convolutions on an EfficientNet."""
    import segmentation_models_pytorch as smp

    return smp.Linknet("timm-tf_efficientnet_lite0", **SMP), images()


def segformer() -> Example:
    """transformers: SegFormer, attention over reduced keys and a decoder of linear layers."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[16, 32], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        sr_ratios=[4, 2], patch_sizes=[7, 3], strides=[4, 2], decoder_hidden_size=32, num_labels=3,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config), images()


def unet_3d() -> Example:
    """monai: residual U-Net in 3-D with instance norms and PReLU."""
    from monai.networks.nets import UNet

    return UNet(3, 1, 2, channels=(8, 16, 32), strides=(2, 2), num_res_units=2), volumes()


def segresnet_3d() -> Example:
    """monai: SegResNet in 3-D with group norms and trilinear upsampling."""
    from monai.networks.nets import SegResNet

    return SegResNet(init_filters=8, blocks_down=(1, 1, 2), blocks_up=(1, 1), out_channels=2), volumes()


def dynunet_3d() -> Example:
    """monai: U-Net in nnU-Net's manner with deep supervision."""
    from monai.networks.nets import DynUNet

    network = DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], [8, 16, 32], deep_supervision=True, deep_supr_num=1)
    return network, volumes()


def attention_unet() -> Example:
    """monai: U-Net with attention gates in 2-D."""
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(2, 3, 2, channels=(8, 16, 32), strides=(2, 2)), images(32)
