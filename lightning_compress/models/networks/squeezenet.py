"""SqueezeNet 1.0 and 1.1 in timm's interface, with torchvision's pretrained weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.models import SqueezeNet1_0_Weights, SqueezeNet1_1_Weights

# Widths (squeezed, expanded) of the fire modules; None is a max-pool that halves the resolution.
_FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
_Stages = Sequence[Sequence["tuple[int, int] | None"]]
_STAGES_1_0: _Stages = (_FIRES[:3], (None, *_FIRES[3:7]), (None, *_FIRES[7:]))
_STAGES_1_1: _Stages = (_FIRES[:2], (None, *_FIRES[2:4]), (None, *_FIRES[4:]))


class Fire(nn.Module):
    """Fire module: a 1x1 convolution that squeezes the channels, then parallel 1x1 and 3x3 expansions.

    Args:
        in_chans: Number of input channels.
        squeezed: Number of channels after the squeeze convolution.
        expanded: Number of channels of each expansion; their concatenation is the output.
    """

    def __init__(self, in_chans: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_chans, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.expand1 = nn.Conv2d(squeezed, expanded, 1)
        self.act1 = nn.ReLU(inplace=True)
        self.expand3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.act3 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_chans, H, W)`` to ``(N, 2 * expanded, H, W)``."""
        x = self.act(self.squeeze(x))
        return torch.cat([self.act1(self.expand1(x)), self.act3(self.expand3(x))], 1)


class SqueezeNet(nn.Module):
    """Network of fire modules with a convolutional classifier (Iandola et al. 2016, arXiv:1602.07360).

    Args:
        stem: Width and kernel size of the first convolution.
        stages: Widths ``(squeezed, expanded)`` of the fire modules of each stage; ``None`` is a max-pool.
        num_classes: Number of classes; 0 for no classifier, with pooled features as output.
        in_chans: Number of channels of the images.
        global_pool: timm's name of the global pool, such as ``"avg"``; ``""`` for none.
        drop_rate: Probability of dropout before the classifier.
    """

    def __init__(
        self,
        stem: tuple[int, int],
        stages: _Stages,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        width, kernel_size = stem
        self.conv1 = nn.Conv2d(in_chans, width, kernel_size, stride=2)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.feature_info: list[dict[str, Any]] = [{"num_chs": width, "reduction": 2, "module": "act1"}]
        for number, fires in enumerate(stages, start=1):
            self.add_module(f"stage{number}", _stage(width, fires))
            width = 2 * next(fire for fire in reversed(fires) if fire)[1]
            self.feature_info.append({"num_chs": width, "reduction": 2 ** (number + 1), "module": f"stage{number}"})
        self.num_features = self.head_hidden_size = width
        self.drop = nn.Dropout(drop_rate)
        self.classifier: nn.Module = _classifier(width, num_classes)
        self.act = nn.ReLU(inplace=True)
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        _init(self)
        _init_classifier(self.classifier)

    def get_classifier(self) -> nn.Module:
        """Return the classifier, a 1x1 convolution or an identity."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; arguments as in the constructor."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        like = self.conv1.weight
        self.classifier = _classifier(self.num_features, num_classes).to(like.device, like.dtype)
        _init_classifier(self.classifier)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns of parameter names, by which timm groups layers for layer-wise learning rates."""
        return {"stem": r"^conv1", "blocks": r"^stage(\d+)" if coarse else r"^stage(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Disable gradient checkpointing, which is not supported.

        Raises:
            ValueError: If ``enable`` is True.
        """
        if enable:
            raise ValueError("SqueezeNet does not support gradient checkpointing: leave it disabled.")

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)``, at least 17x17, to features ``(N, num_features, H / 16, W / 16)``."""
        for module in self._feature_modules().values():
            x = module(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map features to logits ``(N, num_classes)``, or to pooled features if ``pre_logits``."""
        x = self.drop(x)
        return self.global_pool(x if pre_logits else self.act(self.classifier(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_chans, H, W)`` to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute intermediate features, as timm's networks do.

        Args:
            x: Images ``(N, in_chans, H, W)``.
            indices: Indices into ``feature_info``; an int for that number of last ones, ``None`` for all.
            norm: Ignored, as the network has no norm.
            stop_early: If True, skips the layers after the last requested feature.
            output_fmt: Must be ``"NCHW"``.
            intermediates_only: If True, returns only the list of features.

        Returns:
            List of the requested features, after the last computed feature unless ``intermediates_only``.

        Raises:
            ValueError: For another ``output_fmt``, or an index out of range.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt={output_fmt!r} must be 'NCHW'.")
        wanted = _indices(indices, len(self.feature_info))
        names = [info["module"] for info in self.feature_info]
        intermediates = []
        for name, module in self._feature_modules().items():
            x = module(x)
            if name in names and names.index(name) in wanted:
                intermediates.append(x)
            if stop_early and name == names[max(wanted)]:
                break
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the features at ``indices``, and the classifier.

        Args:
            indices: As in :meth:`forward_intermediates`.
            prune_norm: Ignored, as the network has no norm.
            prune_head: If False, keeps the classifier unless a stage is removed.

        Returns:
            The indices as non-negative integers.
        """
        wanted = _indices(indices, len(self.feature_info))
        last = max(wanted)
        unneeded = [info["module"] for info in self.feature_info[last + 1 :]]
        for name in [*unneeded, *(["maxpool"] if last == 0 else [])]:
            setattr(self, name, nn.Identity())
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        # Without the last stage the width no longer matches the classifier.
        if prune_head or unneeded:
            self.reset_classifier(0, "")
        return wanted

    def _feature_modules(self) -> dict[str, nn.Module]:
        head = ("drop", "classifier", "act", "global_pool")
        return {name: module for name, module in self.named_children() if name not in head}


def from_torchvision(state_dict: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """Rename the tensors of a torchvision SqueezeNet to the names used here.

    Args:
        state_dict: State dict of torchvision's version 1.0 or 1.1; one with the names used here is returned unchanged.
        model: Not used; timm passes the network that the weights are for.
    """
    if "features.0.weight" not in state_dict:
        return dict(state_dict)
    fires = sorted({int(key.split(".")[1]) for key in state_dict if ".squeeze." in key})
    names = {0: "conv1"}
    stage, index = 0, 0
    for before, number in zip([-1, *fires], fires, strict=False):
        # A gap in torchvision's numbering is a max-pool, which begins a stage.
        opens = number != before + 1
        stage, index = (stage + 1, 1 if stage else 0) if opens else (stage, index + 1)
        names[number] = f"stage{stage}.{index}"
    renamed = {}
    for key, tensor in state_dict.items():
        found = re.fullmatch(r"features\.(\d+)\.(.+)", key)
        new = f"{names[int(found[1])]}.{found[2]}" if found else key.replace("classifier.1.", "classifier.")
        renamed[new.replace("expand1x1", "expand1").replace("expand3x3", "expand3")] = tensor
    return renamed


def _indices(indices: int | Sequence[int] | None, total: int) -> list[int]:
    """Convert indices in timm's forms to non-negative integers below ``total``."""
    if indices is None or isinstance(indices, int):
        return list(range(total))[-indices if indices else None :]
    if not all(-total <= index < total for index in indices):
        raise ValueError(f"indices={list(indices)} must lie in [{-total}, {total}).")
    return [index % total for index in indices]


def _stage(in_chans: int, fires: Sequence[tuple[int, int] | None]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for fire in fires:
        if fire is None:
            modules.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
        else:
            modules.append(Fire(in_chans, *fire))
            in_chans = 2 * fire[1]
    return nn.Sequential(*modules)


def _classifier(in_chans: int, num_classes: int) -> nn.Module:
    return nn.Conv2d(in_chans, num_classes, 1) if num_classes else nn.Identity()


def _init(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _init_classifier(classifier: nn.Module) -> None:
    _init(classifier)
    if isinstance(classifier, nn.Conv2d):
        nn.init.normal_(classifier.weight, std=0.01)


def _cfg(weights: Any) -> dict[str, Any]:
    return {
        "url": weights.IMAGENET1K_V1.url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (13, 13),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv1",
        "classifier": "classifier",
        "license": "bsd-3-clause",
    }


# timm finds the configurations under this name.
default_cfgs = generate_default_cfgs(
    {"squeezenet1_0.tv_in1k": _cfg(SqueezeNet1_0_Weights), "squeezenet1_1.tv_in1k": _cfg(SqueezeNet1_1_Weights)}
)


@register_model
def squeezenet1_0(pretrained: bool = False, **kwargs: Any) -> SqueezeNet:
    """Build SqueezeNet 1.0, 1.25 M parameters."""
    return _build_squeezenet("squeezenet1_0", pretrained, stem=(96, 7), stages=_STAGES_1_0, **kwargs)


@register_model
def squeezenet1_1(pretrained: bool = False, **kwargs: Any) -> SqueezeNet:
    """Build SqueezeNet 1.1, 1.24 M parameters: the accuracy of 1.0 at less than half its computation."""
    return _build_squeezenet("squeezenet1_1", pretrained, stem=(64, 3), stages=_STAGES_1_1, **kwargs)


def _build_squeezenet(name: str, pretrained: bool, **kwargs: Any) -> Any:
    return build_model_with_cfg(
        SqueezeNet,
        name,
        pretrained,
        pretrained_filter_fn=from_torchvision,
        feature_cfg={"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3))},
        **kwargs,
    )
