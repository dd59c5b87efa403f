"""Cells below 20 dB, each network with the reason in one sentence."""

from __future__ import annotations

_COARSE = (
    "Its random weights have two large ones in most channels, so that the default file keeps 7 instead of 8 bits of "
    "them, which training would make up for; with reduce_range=False the file agrees with the simulation at {} dB."
)
EXPLANATIONS: dict[str, str] = {
    "bit": _COARSE.format(39),
    "clip": _COARSE.format(141),
    "dynunet_3d": _COARSE.format(60),
    "efficientformer": (
        "Its downsampling convolutions compute small differences of large sums, which the batch norms behind them "
        "raise: INT8 weights alone leave 14 dB, INT8 activations alone 26 dB; with reduce_range=False the file agrees "
        "with the simulation at 34 dB."
    ),
    "senet": _COARSE.format(46),
}
