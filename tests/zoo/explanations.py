"""Numbers below those of their columns, each with the reason in one sentence."""

from __future__ import annotations

FILE, NM, CHANNELS, PACKED, TAUGHT = (
    "file, dB",
    "2:4, %",
    "half of the channels, times fewer MACs",
    "packed, times smaller",
    "closer to the teacher, dB",
)
_COARSE = (
    "Its random weights have two large ones in most channels, so that the default file keeps 7 instead of 8 bits of "
    "them, which training would make up for; with reduce_range=False the file agrees with the simulation at {} dB."
)
_NOT_IN_FOURS = "Layers of which the number of inputs is no multiple of 4 are left out, as the refusal asks for."
_UNCOVERED = (
    "The callback says at its start that it covers a small share of the weights, and names the rest: {}; further types "
    "are named in Targets(types=...)."
)
_FREEZES = "The backbone is frozen by its class, and frozen layers are never changed."
_FROZEN_NORMS = (
    "Its batch norms are frozen ones of torchvision, the shifts of which are buffers that no mask may change, so that "
    "the channels before them are left as they are."
)
_SLOW = (
    "Twenty steps at a learning rate of 1e-4 are too few beside the dropout or the batch statistics of its student; at "
    "1e-3 it comes {} dB closer."
)
EXPLANATIONS: dict[tuple[str, str], str] = {
    ("bit", FILE): _COARSE.format(39),
    ("clip", FILE): _COARSE.format(141),
    ("dynunet_3d", FILE): _COARSE.format(60),
    ("efficientformer", FILE): (
        "Its downsampling convolutions compute small differences of large sums, which the batch norms behind them "
        "raise: INT8 weights alone leave 14 dB, INT8 activations alone 26 dB; with reduce_range=False the file agrees "
        "with the simulation at 34 dB."
    ),
    ("senet", FILE): _COARSE.format(46),
    **dict.fromkeys(
        [
            (name, NM)
            for name in (
                "vit_torchvision", "clip", "mixer", "vgg", "mobilenet_v4_hybrid", "efficientnet", "fastvit",
                "spectrogram_spotter", "r2plus1d", "recommender",
            )
        ],
        _NOT_IN_FOURS,
    ),
    **dict.fromkeys([("detr", title) for title in ("80 % zeros, %", NM, "16 clusters, %", PACKED, CHANNELS)], _FREEZES),
    ("diffusion", CHANNELS): "Group norms mix the channels of all its convolutions, which are left as they are.",
    ("retinanet", CHANNELS): _FROZEN_NORMS,
    ("roi_heads", CHANNELS): _FROZEN_NORMS,
    **{
        (name, TAUGHT): _SLOW.format(number)
        for name, number in (("deberta", 5.0), ("t5", 1.9), ("nfnet", 0.6), ("points", 2.1))
    },
    ("retinanet", TAUGHT): (
        "Its random weights compute logits that differ by 1e-5 from each other, and so do teacher and student: each "
        "step of Adam is larger."
    ),
    **dict.fromkeys(
        [(name, PACKED) for name in ("distilbert", "roberta", "deberta", "recommender", "rwkv")],
        _UNCOVERED.format("embeddings"),
    ),
    ("mixtral", PACKED): _UNCOVERED.format("experts, as one parameter of three dimensions"),
    **dict.fromkeys(
        [
            (name, PACKED)
            for name in ("selective_scan", "spectrogram_spotter", "conv_tasnet", "points", "graph_convolution")
        ],
        "It has a few hundred to a few thousand weights; the rest of the file are norms, biases and buffers in FP32.",
    ),
}  # fmt: skip
