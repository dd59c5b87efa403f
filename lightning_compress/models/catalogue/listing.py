"""Selection of timm's compact networks by name, size and cost, with precomputed counts."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import timm
from timm.models import get_pretrained_cfg, is_model_pretrained
from torch import nn

from lightning_compress.models.catalogue.counting import Sizes, macs, on_meta, sizes
from lightning_compress.models.catalogue.latency import latencies
from lightning_compress.models.catalogue.table import Backbone, Catalogue

# Globs of timm names; networks that the installed timm lacks are not listed.
FAMILIES: Mapping[str, tuple[str, ...]] = {
    "SqueezeNet": ("squeezenet1_*",),
    "MobileNetV1": ("mobilenetv1_*",),
    "MobileNetV2": ("mobilenetv2_*",),
    "MobileNetV3": ("mobilenetv3_*",),
    "MobileNetV4": ("mobilenetv4_conv_small*", "mobilenetv4_conv_medium", "mobilenetv4_hybrid_medium*"),
    "MNASNet": ("mnasnet_*", "semnasnet_*"),
    "SPNASNet": ("spnasnet_*",),
    "FBNet": ("fbnetc_*", "fbnetv3_*"),
    "HardCoRe-NAS": ("hardcorenas_*",),
    "EfficientNet": ("efficientnet_b[0-2]",),
    "EfficientNet-Lite": ("efficientnet_lite*",),
    "TinyNet": ("tinynet_*",),
    "MixNet": ("mixnet_s", "mixnet_m", "mixnet_l"),
    "LCNet": ("lcnet_*", "lcnetv2_*"),
    "GhostNet": ("ghostnet_*", "ghostnetv2_*", "ghostnetv3_*"),
    "RepGhost": ("repghostnet_*",),
    "ReXNet": ("rexnet_1*",),
    "RegNet": ("regnetx_00[2-8]", "regnety_00[2-8]"),
    "ResNet": ("resnet10t", "resnet14t", "resnet18", "resnet18d"),
    "RepVGG": ("repvgg_a[01]", "repvgg_b0"),
    "MobileOne": ("mobileone_*",),
    "FasterNet": ("fasternet_t*",),
    "StarNet": ("starnet_*",),
    "ConvNeXt": ("convnext_atto", "convnext_femto", "convnext_pico"),
    "EdgeNeXt": ("edgenext_*",),
    "MobileViT": ("mobilevit_*", "mobilevitv2_*"),
    "EfficientViT": ("efficientvit_b[01]", "efficientvit_m*"),
    "RepViT": ("repvit_m0_9", "repvit_m1_[015]"),
    "SHViT": ("shvit_*",),
    "FastViT": ("fastvit_t*", "fastvit_sa12"),
    "SwiftFormer": ("swiftformer_xs", "swiftformer_s"),
    "EfficientFormer": ("efficientformer_l1", "efficientformerv2_s[0-2]"),
    "LeViT": ("levit_128s", "levit_128", "levit_192"),
    "TinyViT": ("tiny_vit_5m_224", "tiny_vit_11m_224"),
    "ViT": ("vit_tiny_patch16_224",),
}
# Written by tests/benchmarks/backbone_counts.py.
COUNTS = Path(__file__).with_name("counts.json")


def backbones(
    glob: str = "*",
    *,
    max_params: float | None = None,
    max_macs: float | None = None,
    input_size: int | None = None,
    num_classes: int | None = None,
    latency: bool = False,
) -> Catalogue:
    """List timm's compact networks with their parameters, multiply-accumulates and bytes.

    Counts are those of the networks as timm builds them, in eval mode; for networks that merge branches for deployment
    (RepVGG, MobileOne) those before the merge. Counts with 1000 classes at 32x32 and at the default input size are
    precomputed for one version of timm; others are computed on request, in about a second per network.

    Args:
        glob: Case-insensitive glob of names or families, such as ``"mobilenetv3*"`` or ``"EfficientNet-Lite"``.
        max_params: Upper limit of the number of parameters.
        max_macs: Upper limit of the multiply-accumulates for one image.
        input_size: Height and width of the images in pixels; by default those of each network's configuration.
        num_classes: Number of classes; by default the 1000 of ImageNet.
        latency: If True, measures the latency for one image in PyTorch, on the CPU in FP32 with one thread: the median
            of 7 rounds, with up to 16 networks interleaved.

    Returns:
        The networks within the limits, in the order of their families.

    Raises:
        ValueError: If the glob matches no network, or a size or limit is not positive.

    >>> import lightning_compress as lc
    >>> [row.name for row in lc.backbones("mobilenetv3*", max_params=3e6).rows]
    ['mobilenetv3_small_050', 'mobilenetv3_small_075', 'mobilenetv3_small_100']
    """
    arguments = {"max_params": max_params, "max_macs": max_macs, "input_size": input_size, "num_classes": num_classes}
    for key, value in arguments.items():
        if value is not None and value <= 0:
            raise ValueError(f"{key}={value} must be more than 0.")
    rows, left_out = list[Backbone](), list[str]()
    for network in _matching(glob, num_classes):
        if max_params is not None and network.sizes.params > max_params:
            continue
        row = network.row(input_size)
        if row is None:
            left_out.append(network.name)
        elif max_macs is None or row.macs <= max_macs:
            rows.append(row)
    return Catalogue(_timed(rows, num_classes) if latency else tuple(rows), tuple(left_out))


class _CountedNetwork:
    """A network with precomputed counts where they exist, and computed ones otherwise."""

    def __init__(self, name: str, family: str, num_classes: int | None) -> None:
        self.name, self.family, self._kwargs = name, family, _classes(num_classes)
        self._stored: Mapping[str, Any] = {} if num_classes else stored_counts().get(name, {})

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(**self._stored["sizes"]) if self._stored else sizes(self._model)

    def row(self, input_size: int | None) -> Backbone | None:
        """Return the costs at an input size, or None if the network does not support it."""
        size = input_size or default_input_size(self.name)
        num_macs = self._stored["macs"][str(size)] if str(size) in self._stored.get("macs", ()) else self._count(size)
        if num_macs is None:
            return None
        return Backbone(
            self.name,
            self.family,
            self.sizes.params,
            num_macs,
            self.sizes.fp32_bytes,
            self.sizes.int8_bytes,
            size,
            is_model_pretrained(self.name),
        )

    @cached_property
    def _model(self) -> nn.Module:
        return on_meta(self.name, **self._kwargs)

    def _count(self, size: int) -> int | None:
        try:
            return macs(self._model, (3, size, size))
        except Exception:  # networks of timm fail on unsupported sizes with various exceptions
            if size == default_input_size(self.name):
                raise
            return None


@cache
def stored_counts() -> Mapping[str, Any]:
    """Return the precomputed counts by name; empty for another version of timm, as its networks may differ."""
    counts = json.loads(COUNTS.read_text())
    return counts["networks"] if counts["timm"] == timm.__version__ else {}


def families_by_name() -> dict[str, str]:
    """Return the family of each compact network of the installed timm, by its name."""
    return {name: family for family, globs in FAMILIES.items() for glob in globs for name in timm.list_models(glob)}


def default_input_size(name: str) -> int:
    """Return the height and width of the images in a network's timm configuration."""
    cfg = get_pretrained_cfg(name)
    assert cfg is not None
    return int(cfg.input_size[-1])


def _matching(glob: str, num_classes: int | None) -> Iterator[_CountedNetwork]:
    families, pattern = families_by_name(), glob.lower()
    matches = [
        name for name, family in families.items() if fnmatchcase(name, pattern) or fnmatchcase(family.lower(), pattern)
    ]
    if not matches:
        near = difflib.get_close_matches(pattern.strip("*"), [*families, *map(str.lower, FAMILIES)], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{glob!r} matches no backbone{hint}; the families are {', '.join(FAMILIES)}.")
    return (_CountedNetwork(name, families[name], num_classes) for name in matches)


def _classes(num_classes: int | None) -> dict[str, Any]:
    return {"num_classes": num_classes} if num_classes else {}


def _timed(rows: Sequence[Backbone], num_classes: int | None) -> tuple[Backbone, ...]:
    seconds = latencies({row.name: row.input_size for row in rows}, **_classes(num_classes))
    return tuple(replace(row, latency=seconds[row.name]) for row in rows)
