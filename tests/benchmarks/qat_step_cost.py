"""Cost of a quantization-aware training step over the plain step: ResNet-20, 32x32 images, batch 128, SGD, W8A8.

    python tests/benchmarks/qat_step_cost.py [--rounds 9] [--steps 8] [--accelerator cpu|gpu] [--compile]
        [--arms ours nncf coremltools torchao]

All arms are real fits of Lightning's Trainer, run in turns; a step is timed from one batch start to the next. Those of
other packages are measured where they are installed (nncf with openvino, coremltools, torchao).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Callable

import torch
from interleaved import medians, ratio
from lightning.pytorch import Callback
from step_cost import fit, seeded
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc

Arm = tuple[nn.Module, list[Callback]]


def plain(net: nn.Module, images: torch.Tensor) -> Arm:
    return net, []


def ours(net: nn.Module, images: torch.Tensor) -> Arm:
    schedule = lc.QATSchedule(freeze_observers=1.0, freeze_batch_norm=1.0)  # the dearest stage, all the time
    return net, [lc.QuantizationAwareTraining(schedule=schedule)]


def frozen(net: nn.Module, images: torch.Tensor) -> Arm:
    """As in the second half of a run by default: ranges are fixed."""
    return net, [lc.QuantizationAwareTraining(schedule=lc.QATSchedule(freeze_observers=2, freeze_batch_norm=1.0))]


def learned(net: nn.Module, images: torch.Tensor) -> Arm:
    integers = lc.Int(8, observer=lc.Learned())
    schedule = lc.QATSchedule(freeze_observers=1.0, freeze_batch_norm=1.0)
    return net, [lc.QuantizationAwareTraining(weights=integers, activations=integers, schedule=schedule)]


def nncf(net: nn.Module, images: torch.Tensor) -> Arm:
    import nncf

    return nncf.quantize(net.eval(), nncf.Dataset([images[:128]]), subset_size=1).train(), []


def coremltools(net: nn.Module, images: torch.Tensor) -> Arm:
    from coremltools.optimize.torch.quantization import LinearQuantizer, LinearQuantizerConfig

    config = LinearQuantizerConfig.from_dict({"global_config": {"milestones": [0, 0, 10**6, 10**6]}})
    quantizer = LinearQuantizer(net, config)
    net = quantizer.prepare(example_inputs=(images[:128],), inplace=True)

    class Step(Callback):
        def on_train_batch_start(self, *args: object) -> None:
            quantizer.step()

    return net, [Step()]


def torchao(net: nn.Module, images: torch.Tensor) -> Arm:
    import torchao.quantization.pt2e as pt2e
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(net.train(), (images[:128],)).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(exported, quantizer)
    pt2e.move_exported_model_to_train(prepared)
    pt2e.allow_exported_model_train_eval(prepared)
    return prepared, []


ARMS: dict[str, Callable[[nn.Module, torch.Tensor], Arm]] = {
    arm.__name__: arm for arm in (plain, ours, frozen, learned, nncf, coremltools, torchao)
}


def step_times(arm: Callable[..., Arm], images: torch.Tensor, args: argparse.Namespace) -> list[float]:
    """Seconds of every step but the first ones, which allocate."""
    module = seeded()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module.net, callbacks = arm(module.net, images)
    if args.compile:
        module.net.compile()
    data = TensorDataset(images, torch.randint(0, 10, (len(images),)))
    return fit(module, callbacks, DataLoader(data, batch_size=128), args.accelerator)[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--arms", nargs="+", default=[name for name in ARMS if name != "plain"], choices=ARMS)
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric", "nncf", "coremltools"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    # All arms and rounds compile the same forward, which would be left to the interpreter after eight times.
    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 1000

    images = torch.randn(128 * (args.steps + 3), 3, 32, 32)
    arms = {}
    for name in ["plain", *args.arms]:
        try:
            step_times(ARMS[name], images, args)
        except Exception as error:  # a package that is missing, or that torch.compile does not support
            reason = (str(error).strip().splitlines() or [""])[0]
            print(f"{name}: not measured ({type(error).__name__}: {reason[:150]})", flush=True)
            continue
        arms[name] = lambda name=name: step_times(ARMS[name], images, args)
    results = medians(arms, rounds=args.rounds)
    print(f"torch {torch.__version__}, {args.accelerator}, {torch.get_num_threads()} threads, compile={args.compile}")
    print(f"plain step: {1e3 * sorted(results['plain'])[len(results['plain']) // 2]:.2f} ms")
    for name in arms:
        if name != "plain":
            print(f"{name:12} step / plain step: {ratio(results, name, 'plain')}")


if __name__ == "__main__":
    main()
