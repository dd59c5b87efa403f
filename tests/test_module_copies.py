"""Copies of modules as people write them: with a run, a graph, hooks, locks and cycles around the weights."""

from __future__ import annotations

import concurrent.futures
import copy
import gc
import queue
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
import wandb
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.module_copies import copy_module
from tests.cases import Loader, Net, trainer


class Holder:
    """An object of the user, with any attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def scale(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * self.network.factor  # type: ignore[attr-defined]


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.factor


class Remembering(nn.Module):
    """Keeps tensors with a graph in all places where people keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("average", torch.zeros(()))
        self.metric = torchmetrics.CatMetric()
        self.losses: list[Tensor] = []
        self.cache: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.linear(x)
        self.average = 0.9 * self.average + self.last.mean()
        self.metric.update(self.last)
        self.losses.append(self.last.sum())
        self.cache["states"] = OrderedDict(first=(self.last, Holder(keys=self.last * 2)))
        return self.last.relu()


def inputs() -> Tensor:
    return torch.randn(4, 3)


def assert_same_output(copied: nn.Module, module: nn.Module) -> None:
    x = inputs()
    assert torch.equal(copied(x), module(x))


def assert_separate(copied: nn.Module, module: nn.Module) -> None:
    own = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    assert not [name for name, tensor in (*copied.named_parameters(), *copied.named_buffers()) if id(tensor) in own]
    for name, tensor in module.state_dict().items():
        assert torch.equal(copied.state_dict()[name], tensor)
        assert tensor.numel() == 0 or copied.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_tensors_are_copied_and_those_that_are_shared_stay_so() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    module[0].bias.requires_grad_(False)
    copied = copy_module(module.eval())
    assert_separate(copied, module)
    assert copied[2].weight is copied[0].weight
    assert not copied[0].bias.requires_grad
    assert not copied[1].training


def test_tensors_with_a_graph_are_detached() -> None:
    module = Remembering()
    module(inputs())
    copied = copy_module(module)
    held = copied.cache["states"]["first"]
    for tensor in (copied.last, copied.average, copied.losses[0], held[0], held[1].keys, *copied.metric.value):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
    assert torch.equal(copied.last, module.last)
    assert copied.last is held[0]
    assert copied.last.data_ptr() != module.last.data_ptr()
    assert module.last.grad_fn is not None
    assert_same_output(copied, module)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normalize", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_hooks_compute(normalize: Callable[[nn.Module], nn.Module]) -> None:
    module = nn.Sequential(normalize(nn.Linear(3, 2)), nn.ReLU())
    module(inputs())
    copied = copy_module(module.eval())
    assert_separate(copied, module)
    assert_same_output(copied, module)
    name, parameter = next(iter(copied[0].named_parameters()))
    with torch.no_grad():
        for other in copied[0].parameters():
            other.add_(1.0)
    x = inputs()
    assert not torch.equal(copied(x), module(x)), name
    copied(x).sum().backward()
    assert parameter.grad is not None


def test_parametrized_weights() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert_separate(copy_module(module), module)
    assert_same_output(copy_module(module), module)


def test_hooks_compute_in_the_copy() -> None:
    module, seen = Scaled(), []
    module.linear.register_forward_hook(lambda module, args, output: output + 1.0)
    module.linear.register_forward_pre_hook(partial(lambda value, module, args: (args[0] + value,), 3.0))
    # A lock beside it does not tie the method of an object to the original network.
    module.register_forward_hook(Holder(network=module, lock=threading.Lock()).scale)
    module.register_forward_hook(Holder(network=Holder(factor=module.factor), lock=threading.Lock()).scale)
    module.linear.register_forward_hook(lambda module, args, output: seen.append(module))
    copied = copy_module(module)
    assert_same_output(copied, module)
    assert seen == [copied.linear, module.linear]
    with torch.no_grad():
        module.factor.fill_(5.0)
    handle = copied.linear.register_forward_hook(lambda module, args, output: output * 0.0)
    x = inputs()
    assert not torch.equal(copied(x), module(x))
    handle.remove()
    with torch.no_grad():
        copied.factor.fill_(5.0)
    assert torch.equal(copied(x), module(x))


@pytest.fixture
def awkward(tmp_path: Path) -> dict[str, Any]:
    """Objects that deepcopy cannot copy, or only in part."""
    waiting: queue.Queue[Any] = queue.Queue()
    thread = threading.Thread(target=waiting.get, daemon=True)
    return {
        "lock": threading.Lock(),
        "pool": concurrent.futures.ThreadPoolExecutor(1),
        "file": (tmp_path / "log.txt").open("w"),
        "generator": (number for number in range(3)),
        "writer": Holder(queue=waiting, thread=thread, events=[]),
        "iterator": iter(DataLoader(TensorDataset(torch.zeros(2)), num_workers=0)),
        "library": torch,
        "partial": partial(print, threading.Lock()),
    }


def test_objects_that_cannot_be_copied_are_shared(awkward: dict[str, Any]) -> None:
    module = Scaled()
    vars(module).update(awkward)
    module.linear.objects = {"list": [*awkward.values(), torch.ones(2)], **awkward}
    copied = copy_module(module)
    assert_separate(copied, module)
    assert_same_output(copied, module)
    for name, value in awkward.items():
        assert vars(copied)[name] is value, name
    # Those around them are not.
    assert copied.linear.objects["list"] is not module.linear.objects["list"]
    assert copied.linear.objects["list"][:-1] == [*awkward.values()]
    assert copied.linear.objects["list"][-1] is not module.linear.objects["list"][-1]


def test_plain_objects_are_copied() -> None:
    module = Scaled()
    module.config = Holder(sizes=[1, 2], inner=Holder(rate=0.1), library=torch)
    module.random = torch.Generator().manual_seed(3)
    copied = copy_module(module)
    copied.config.sizes.append(3)
    copied.config.inner.rate = 0.5
    torch.rand(2, generator=copied.random)
    assert (module.config.sizes, module.config.inner.rate) == ([1, 2], 0.1)
    assert torch.equal(module.random.get_state(), torch.Generator().manual_seed(3).get_state())


def test_cycles_lead_back_into_the_copy() -> None:
    class Child(nn.Module):
        def __init__(self, parent: nn.Module) -> None:
            super().__init__()
            self.parent = [parent]
            self.helper = Holder(child=self, lock=threading.Lock())
            self.method = parent.forward
            self.link = weakref.proxy(parent)

    module = Scaled()
    module.linear.child = Child(module)
    copied = copy_module(module)
    child = copied.linear.child
    assert child.parent[0] is copied
    assert child.helper.child is child
    assert child.method.__self__ is copied
    assert copy_module(module.linear.child).parent[0].linear.child.helper.child is not module.linear.child


def test_the_run_is_shared_and_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, data = WandbLogger(offline=True, save_dir=tmp_path), LightningDataModule()
    loader = DataLoader(TensorDataset(torch.zeros(2)), num_workers=2)

    class Module(Net):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"logger": logger, "rate": 0.1})
            self.logs, self.conv1.logs = logger, [logger]

        def setup(self, stage: str) -> None:
            self.proxy = self.trainer
            self.conv2.run = Holder(trainer=self.trainer, callbacks=self.trainer.callbacks, data=[data, loader])

    module = Module()
    run = trainer([], logger=logger)
    run.fit(module, Loader())
    monkeypatch.setattr(WandbLogger, "__getstate__", lambda self: pytest.fail("a logger was copied"))
    monkeypatch.setattr(Trainer, "__reduce_ex__", lambda self, protocol: pytest.fail("a Trainer was copied"))
    copied = copy_module(module)
    assert copied._trainer is None
    assert module._trainer is not None
    assert copied.logs is copied.conv1.logs[0] is copied.hparams["logger"] is logger
    assert copied.proxy is module.proxy
    assert copied.conv2.run.trainer is module.conv2.run.trainer
    assert copied.conv2.run.data[0] is data
    assert copied.conv2.run.data[1] is loader
    copied.hparams["rate"] = 0.5
    assert module.hparams["rate"] == 0.1
    assert_separate(copied, module)
    wandb.finish()


def test_after_the_end_of_a_wandb_run(tmp_path: Path) -> None:
    """Each step after the fit makes copies: none of them attaches to the run, or logs to it in a hook."""

    class Module(Net):
        def __init__(self, logger: WandbLogger) -> None:
            super().__init__()
            self.logs = self.norm1.logs = logger

        def on_fit_end(self) -> None:
            self.norm2.trainer = self.trainer
            self.norm2.experiment = self.logger.experiment  # type: ignore[union-attr]

    logger = WandbLogger(offline=True, save_dir=tmp_path)
    module, x = Module(logger), torch.randn(8, 4, 8, 8)
    logger.watch(module, log="all", log_freq=1)
    trainer([lc.Pruning(0.5, pattern=lc.Channels(), scope="layer")], logger=logger).fit(module, Loader())
    expected = module.eval()(x)
    wandb.finish()
    small, _ = lc.shrink(module, x)
    assert torch.allclose(small(x), expected, atol=1e-5)
    assert sum(parameter.numel() for parameter in small.parameters()) < 384
    quantized = lc.calibrate(small, [x])
    assert lc.export_onnx(lc.finalize(quantized, example_inputs=x), tmp_path / "model.onnx", x).path.exists()
    assert lc.report(small, x).layers
    assert wandb.run is None


def test_dead_trainer() -> None:
    module, run = Net(), trainer([])
    module.proxy = weakref.proxy(run)
    del run
    gc.collect()
    assert copy_module(module).proxy is module.proxy


def test_callback_of_a_hook_counts_for_itself() -> None:
    class Counter(Callback):
        calls = 0

        def on_fit_start(self, trainer: Any, pl_module: LightningModule) -> None:
            self.trainer = trainer
            pl_module.conv1.register_forward_hook(self.count)

        def count(self, *_: Any) -> None:
            self.calls += 1

    module, counter = Net(), Counter()
    run = trainer([counter])
    run.fit(module, Loader())
    calls = counter.calls
    copied = copy_module(module)
    copied(torch.zeros(1, 4, 8, 8))
    assert counter.calls == calls


def test_compiled_scripted_and_traced_modules() -> None:
    module = nn.Sequential(
        torch.compile(nn.Linear(3, 3), backend="eager"),
        torch.jit.script(nn.Linear(3, 3)),
        torch.jit.trace(nn.Linear(3, 3), inputs()),
        torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3))),
    )
    module[3].compile(backend="eager")
    module[3].last = module(inputs())
    copied = copy_module(module)
    assert_same_output(copied, module)
    assert_separate(copied, module)
    assert_same_output(copy_module(module[1]), module[1])


def test_given_copies_and_methods_of_own_are_used() -> None:
    class Own(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            made = memo[id(self)] = Own(3, 3)
            return made

    module, other = nn.Sequential(Own(3, 3)), nn.Linear(2, 2)
    module.other = [other, other]  # type: ignore[assignment]
    replacement = nn.Linear(1, 1)
    copied = copy_module(module, {id(other): replacement})
    assert copied.other == [replacement, replacement]
    assert isinstance(copied[0], Own)
    assert not torch.equal(copied[0].weight, module[0].weight)


def test_as_part_of_another_copy() -> None:
    class Wrapper:
        def __init__(self, network: nn.Module) -> None:
            self.network = network

        def __deepcopy__(self, memo: dict[int, Any]) -> Wrapper:
            return Wrapper(copy_module(self.network, memo))

    module = Remembering()
    module(inputs())
    network, wrapper = copy.deepcopy([[], Wrapper(module)])[1].network, Wrapper(module)
    assert network.last.grad_fn is None
    wrapper_copy, module_copy = copy.deepcopy((wrapper, module))
    assert wrapper_copy.network is module_copy


def test_modules_that_cannot_be_copied_are_named() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> Stubborn:
            raise RuntimeError("not today\nat all")

    with pytest.raises(ValueError, match=r"^Sequential cannot be copied because of '0\.1' \(RuntimeError: not today\)"):
        copy_module(nn.Sequential(nn.Sequential(nn.ReLU(), Stubborn(2, 2))))
    with pytest.raises(ValueError, match=r"because of 'Stubborn'.*set it to None.*__deepcopy__"):
        copy_module(Stubborn(2, 2))

    class Sealed(Holder):
        def __setstate__(self, state: Any) -> None:
            raise TypeError("sealed")

    module = nn.Sequential(nn.Linear(2, 2))
    module[0].plain = Sealed(size=3)
    assert copy_module(module)[0].plain is module[0].plain
    module[0].state = Sealed(network=nn.ReLU())
    with pytest.raises(ValueError, match=r"because of '0\.state' \(TypeError: sealed\)"):
        copy_module(module)


def test_tensors_that_deepcopy_refuses_are_cloned() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.ones(2))
    module.mask.lock = threading.Lock()  # type: ignore[union-attr]
    module.weighted = torch.ones(2, requires_grad=True)
    module.weighted.pow(2).sum().backward(create_graph=True)
    copied = copy_module(module)
    assert_separate(copied, module)
    assert torch.equal(copied.weighted, module.weighted)
    assert copied.weighted.data_ptr() != module.weighted.data_ptr()


class Collecting(nn.Module):
    """Computes with what hooks collect in it, and with a function that refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(8, 2)
        self.seen: dict[str, torch.Tensor] = {}
        seen = self.seen

        def keep(name: str, output: torch.Tensor) -> None:
            self.seen[name] = output

        self.first.register_forward_hook(lambda module, args, output, name="a": keep(name, output))
        self.first.register_forward_hook(partial(lambda key, module, args, output: seen.update({key: output}), "b"))
        self.scale = lambda x: x * self.first.weight.sum()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.first(x)
        return self.scale(self.last(torch.cat([self.seen["a"], self.seen["b"]], dim=1)))


def test_functions_that_refer_to_the_module_refer_to_the_copy() -> None:
    module, x = Collecting(), torch.randn(3, 4)
    expected = module(x)
    copied = copy_module(module)
    kept = dict(module.seen)
    torch.nn.init.zeros_(module.first.weight)
    assert torch.equal(copied(x), expected)
    assert all(module.seen[name] is kept[name] for name in kept)
    again = copy_module(copied)
    torch.nn.init.ones_(again.first.weight)
    assert torch.equal(copied(x), expected)
    assert not torch.equal(again(x), expected)


def test_other_functions_stay_the_same_objects() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    layer.register_forward_hook(print_nothing)
    copied = copy_module(layer)
    assert copied.activation is nn.functional.relu
    assert [*copied._forward_hooks.values()] == [print_nothing]


def print_nothing(module: nn.Module, args: object, output: object, *, end: str = "") -> None:
    """Hook with defaults."""
