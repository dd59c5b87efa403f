"""timm's compact networks, with counts that were made beforehand."""

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

# Globs over timm's names; what an older timm lacks is not listed.
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
# Made by tests/benchmarks/backbone_counts.py.
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
    """Compact networks that ``timm.create_model`` makes, with their parameters, multiply-accumulates and bytes.

    All are counted on the networks as timm builds them, in eval mode; those that merge branches for deployment
    (RepVGG, MobileOne and their like) before that. Counts for the installed version of timm, each network's own input
    size and 32x32, with 1000 classes, come with this package; others are made when asked for, in about a second a
    network.

    Args:
        glob: Of names or families, in any case: ``"mobilenetv3*"``, ``"EfficientNet-Lite"``.
        max_params: Most parameters.
        max_macs: Most multiply-accumulates for one image.
        input_size: Height and width of the images in pixels; by default those that each network is meant for.
        num_classes: Number of classes; by default ImageNet's 1000.
        latency: Also measure how long each network takes here for one image, in PyTorch on the CPU, in float32 with
            one thread: medians over 7 rounds in which up to 16 networks at a time take turns.

    Raises:
        ValueError: If the glob matches nothing, or for sizes and limits that are not positive.

    >>> [row.name for row in backbones("mobilenetv3*", max_params=3e6).rows]
    ['mobilenetv3_small_050', 'mobilenetv3_small_075', 'mobilenetv3_small_100']
    """
    given = {"max_params": max_params, "max_macs": max_macs, "input_size": input_size, "num_classes": num_classes}
    for key, value in given.items():
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


class _Network:
    """A network whose counts are looked up, or made where there are none."""

    def __init__(self, name: str, family: str, num_classes: int | None) -> None:
        self.name, self.family, self._kwargs = name, family, _classes(num_classes)
        self._stored: Mapping[str, Any] = {} if num_classes else stored().get(name, {})

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(**self._stored["sizes"]) if self._stored else sizes(self._model)

    def row(self, input_size: int | None) -> Backbone | None:
        """What it costs with images of a size, or nothing if it does not take them."""
        size = input_size or own_input_size(self.name)
        found = self._stored["macs"][str(size)] if str(size) in self._stored.get("macs", ()) else self._count(size)
        if found is None:
            return None
        taken = self.sizes
        trained = is_model_pretrained(self.name)
        return Backbone(self.name, self.family, taken.params, found, taken.fp32_bytes, taken.int8_bytes, size, trained)

    @cached_property
    def _model(self) -> nn.Module:
        return on_meta(self.name, **self._kwargs)

    def _count(self, size: int) -> int | None:
        try:
            return macs(self._model, (3, size, size))
        except Exception:  # timm's networks refuse sizes with whatever fails first
            if size == own_input_size(self.name):
                raise
            return None


@cache
def stored() -> Mapping[str, Any]:
    """Counts by name; none if they are of another version of timm, whose networks may be others."""
    counts = json.loads(COUNTS.read_text())
    return counts["networks"] if counts["timm"] == timm.__version__ else {}


def names() -> dict[str, str]:
    """The family of each network that the installed timm has, by name."""
    return {name: family for family, globs in FAMILIES.items() for glob in globs for name in timm.list_models(glob)}


def own_input_size(name: str) -> int:
    """Height and width of the images that a network is meant for."""
    cfg = get_pretrained_cfg(name)
    assert cfg is not None
    return int(cfg.input_size[-1])


def _matching(glob: str, num_classes: int | None) -> Iterator[_Network]:
    known, wanted = names(), glob.lower()
    found = [name for name, family in known.items() if fnmatchcase(name, wanted) or fnmatchcase(family.lower(), wanted)]
    if not found:
        near = difflib.get_close_matches(wanted.strip("*"), [*known, *map(str.lower, FAMILIES)], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{glob!r} matches no backbone{hint}; the families are {', '.join(FAMILIES)}.")
    return (_Network(name, known[name], num_classes) for name in found)


def _classes(num_classes: int | None) -> dict[str, int]:
    return {"num_classes": num_classes} if num_classes else {}


def _timed(rows: Sequence[Backbone], num_classes: int | None) -> tuple[Backbone, ...]:
    found = latencies({row.name: row.input_size for row in rows}, **_classes(num_classes))
    return tuple(replace(row, latency=found[row.name]) for row in rows)
