"""Bytes, parity and latency of files with 4-bit and 8-bit weights of transformers, with random weights.

    python tests/benchmarks/weight_only.py [--rounds 7] [NETWORK ...]

``vit_small``: timm's vit_small_patch16_224. ``bert_base``: the encoder of BERT-base, without the table of embeddings,
which is no linear layer; ``bert_base_full`` with it, left in FP32. ``gpt``: a GPT-2 with 4 blocks of width 256 and its
table. Groups of 32 inputs unless noted. ``standard`` is the file with DequantizeLinear of opset 21, for which ONNX
Runtime rounds the activations of 4-bit products to 8 bits by default; ``difference`` is the largest of the outputs,
relative to the largest output. ONNX Runtime, one thread, interleaved; medians with quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.arguments import as_arguments
from lightning_compress.export.onnx.runtime import feeds_of, session
from lightning_compress.profiling import interleaved_durations


class Encoder(nn.Module):
    """BERT's encoder, called with embeddings."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        self.encoder = BertModel(BertConfig(attn_implementation="eager")).encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x)[0]


class Tokens(nn.Module):
    """A language model that returns its first output alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)[0]


def vit_small() -> tuple[nn.Module, Any]:
    import timm

    return timm.create_model("vit_small_patch16_224"), torch.randn(1, 3, 224, 224)


def bert_base() -> tuple[nn.Module, Any]:
    return Encoder(), torch.randn(1, 128, 768)


def bert_base_full() -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertModel

    return Tokens(BertModel(BertConfig(attn_implementation="eager"))), torch.randint(0, 30000, (1, 128))


def gpt() -> tuple[nn.Module, Any]:
    return Tokens(SmallGpt()), torch.randint(0, 8000, (1, 64))


class SmallGpt(nn.Module):
    """GPT: causal attention blocks behind a table of tokens, with a head of its own."""

    def __init__(self, width: int = 256, depth: int = 4, num_tokens: int = 8000) -> None:
        super().__init__()
        self.table = nn.Embedding(num_tokens, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_tokens, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
        return (self.head(self.blocks(self.table(tokens), mask=mask)),)


NETWORKS = {each.__name__: each for each in (vit_small, bert_base, bert_base_full, gpt)}
FORMS: dict[str, tuple[lc.Int, bool]] = {
    "4 bits": (lc.Int(4, granularity=32), True),
    "4 bits, groups of 64": (lc.Int(4, granularity=64), True),
    "4 bits, standard": (lc.Int(4, granularity=32), False),
    "8 bits": (lc.Int(8, granularity=32), True),
}

LINEAR = lc.Targets(types=(nn.Linear, nn.MultiheadAttention))  # no patches of a ViT, which a convolution embeds


def measure(name: str, rounds: int, folder: Path) -> None:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    model.eval()
    files = {"FP32": lc.export_onnx(model, folder / "float.onnx", inputs, dynamic_batch=False)}
    for form, (weights, contrib) in FORMS.items():
        quantized = lc.calibrate(model, [inputs], weights=weights, activations=None, targets=LINEAR)
        path = folder / f"{form}.onnx"
        files[form] = lc.export_onnx(quantized, path, inputs, dynamic_batch=False, contrib=contrib)
    runs = {}
    for form, file in files.items():
        runtime = session(file.path)
        feeds = feeds_of(runtime.get_inputs(), as_arguments(inputs))
        runs[form] = lambda runtime=runtime, feeds=feeds: runtime.run(None, feeds)
    durations = interleaved_durations(runs, repeats=rounds, warm_up=2)
    for form, file in files.items():
        lower, median, upper = (1e3 * s for s in statistics.quantiles(durations[form], method="inclusive"))
        share = file.num_bytes / files["FP32"].num_bytes
        print(
            f"{name}, {form}: {file.num_bytes / 1e6:.1f} MB ({share:.3f}), difference {file.difference:.1e}, "
            f"{median:.1f} ms ({lower:.1f} to {upper:.1f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*NETWORKS], metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, args.rounds, Path(folder))


if __name__ == "__main__":
    main()
