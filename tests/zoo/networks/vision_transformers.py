"""Vision transformers, plain, windowed, and mixed with convolutions."""

from __future__ import annotations

import timm
import torch

from tests.zoo.networks.convolutional import images
from tests.zoo.subject import Example


def vit() -> Example:
    """timm: vision transformer with a class token."""
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_classes=10
    )
    torch.nn.init.normal_(network.cls_token)
    return network, images()


def vit_torchvision() -> Example:
    """torchvision: vision transformer of nn.MultiheadAttention."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    torch.nn.init.normal_(network.heads[0].weight, std=0.1)
    torch.nn.init.normal_(network.class_token)
    return network, images()


def cait() -> Example:
    """timm: CaiT, scores mixed over heads and tiny scales of layers."""
    network = timm.create_model(
        "cait_xxs24_224", img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=4, num_classes=10
    )
    torch.nn.init.normal_(network.cls_token)
    return network, images()


def swin() -> Example:
    """timm: Swin transformer with shifted windows and relative positions."""
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24, depths=(2, 1), num_heads=(2, 4),
        num_classes=10,
    )  # fmt: skip
    return network, images()


def mobilevit() -> Example:
    """timm: MobileViT, convolutions around a transformer on unfolded patches."""
    from timm.models.byobnet import ByobNet, ByoModelCfg
    from timm.models.mobilevit import _inverted_residual_block, _mobilevit_block

    blocks = (_inverted_residual_block(d=1, c=16, s=1), _mobilevit_block(1, 24, 2, 32, 1))
    config = ByoModelCfg(blocks, stem_chs=16, stem_type="3x3", stem_pool="", act_layer="silu", num_features=48)
    return ByobNet(config, num_classes=10), images()


def efficientformer() -> Example:
    """timm: EfficientFormer, pools as token mixers, then attention with biases."""
    network = timm.create_model("efficientformer_l1", num_classes=10, depths=(1, 1, 1, 2), embed_dims=(16, 24, 32, 48))
    return network, images(224, num=1)


def levit() -> Example:
    """timm: LeViT, linear layers with batch norms, hard-swish attention."""
    network = timm.create_model(
        "levit_128s", img_size=64, num_classes=10, embed_dim=(32, 48, 64), key_dim=8, num_heads=(2, 3, 4),
        depth=(1, 1, 1),
    )  # fmt: skip
    return network, images(64, num=4)


def efficientvit() -> Example:
    """timm: EfficientViT with attention by a ReLU kernel."""
    network = timm.create_model(
        "efficientvit_b0", num_classes=10, depths=(1, 1, 1, 1), widths=(8, 16, 16, 32, 32), head_widths=(64, 64)
    )
    return network, images(64, num=4)


def maxvit() -> Example:
    """timm: MaxViT, attention over blocks and over a grid, convolutions with squeeze-and-excitation."""
    from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitTransformerCfg

    attention = MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4), rel_pos_type="bias")
    config = MaxxVitCfg(
        embed_dim=(16, 32), depths=(1, 1), block_type=("M", "M"), stem_width=16, transformer_cfg=attention
    )
    return MaxxVit(config, img_size=32, num_classes=10), images()


def clip() -> Example:
    """transformers: CLIP, two encoders and a matrix of cosine similarities."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 96, "max_position_embeddings": 16, "eos_token_id": 95},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    ids = torch.randint(4, 95, (4, 8))
    ids[:, -1] = 95
    return CLIPModel(config), {"input_ids": ids, "pixel_values": images(num=4)}


def mixer() -> Example:
    """timm: MLP-Mixer, linear layers over tokens and over channels."""
    network = timm.models.MlpMixer(10, 32, patch_size=8, num_blocks=2, embed_dim=32)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    return network, images()


def poolformer() -> Example:
    """timm: PoolFormer, differences of average pools."""
    from timm.models.metaformer import GroupNorm1, MetaFormer, Pooling

    network = MetaFormer(
        depths=(1, 1, 1, 1), dims=(16, 24, 32, 48), num_classes=10, token_mixers=Pooling, norm_layers=GroupNorm1,
        downsample_norm=None, use_mlp_head=False, layer_scale_init_values=1e-5, res_scale_init_values=None,
    )  # fmt: skip
    return network, images(64, num=4)
