"""Contract 6: copies, pickles and compiled modules."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch._dynamo import lookup_backend

import lightning_compress as lc
from lightning_compress.trainer.compression_callback import techniques
from tests.cases import (
    CASES,
    RAMP,
    Case,
    Loader,
    Net,
    assert_same,
    assert_zeros,
    case,
    dataset,
    every_case,
    main_cases,
    masks_of,
    num_masked,
    num_zeros,
    save_every_step,
    scales_of,
    trainer,
    val_loader,
)


class Copies(Callback):
    """Copies model and callbacks at every moment of the fit."""

    def __init__(self) -> None:
        self.copies: list[tuple[dict[str, Tensor], LightningModule, list[Callback]]] = []

    def take(self, twin: Callable[[Any], Any], run: Trainer, model: LightningModule) -> None:
        self.copies.append((masks_of(run), twin(model), [twin(callback) for callback in techniques(run)]))

    def both(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        self.take(copy.deepcopy, run, model)
        self.take(reloaded, run, model)

    def in_turn(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        """Copies in two steps, pickles in the next two: techniques change something every two steps or more often."""
        self.take(reloaded if run.global_step // 2 % 2 else copy.deepcopy, run, model)

    on_fit_start = on_train_start = on_train_epoch_end = on_train_end = on_fit_end = both
    on_train_batch_start = on_after_backward = on_before_optimizer_step = on_train_batch_end = in_turn
    on_validation_batch_end = in_turn


def reloaded(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


@main_cases(CASES)
def test_copies_at_any_moment(case: Case) -> None:
    model, copies = Net(), Copies()
    case.prepare(model)
    trainer([copies, *case.callbacks()]).fit(model, Loader(), val_loader())
    assert len(copies.copies) > 50
    for masks, twin, callbacks in copies.copies:
        assert_zeros(dict(twin.named_parameters()), masks)
        assert [type(callback) for callback in callbacks] == [type(callback) for callback in case.callbacks()]
    images = dataset(8).tensors[0]
    for _, twin, _ in copies.copies[-2:]:
        assert_same(dict(twin.state_dict()), dict(model.state_dict()))
        assert torch.equal(twin.eval()(images), model.eval()(images))


@every_case
def test_a_copy_trains_on_where_the_original_stood(case: Case) -> None:
    class Half(Callback):
        def on_train_batch_end(self, run: Trainer, model: LightningModule, *args: Any) -> None:
            if run.global_step == 8:
                self.masks, self.scales = masks_of(run), scales_of(model.state_dict())
                self.twin = copy.deepcopy(model)
                self.callbacks = [reloaded(callback) for callback in techniques(run)]

    class Begin(Callback):
        def on_train_start(self, run: Trainer, model: LightningModule) -> None:
            self.masks, self.scales = masks_of(run), scales_of(model.state_dict())
            self.steps = [technique.steps for technique in techniques(run)]

    half, begin, model = Half(), Begin(), Net()
    case.prepare(model)
    trainer([half, *case.callbacks()]).fit(model, Loader())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer([*half.callbacks, begin]).fit(half.twin, Loader())
    assert_same(begin.masks, half.masks)
    assert_same(begin.scales, half.scales)
    assert begin.steps == [8] * len(begin.steps)
    assert_same(dict(model.state_dict()), before)


def test_a_pickled_callback_holds_no_weights() -> None:
    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(100, 1000)  # 400 KB of weights, 12.5 KB of packed mask

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.wide.weight.sum()

    class Size(Callback):
        def __init__(self) -> None:
            self.sizes: list[int] = []

        def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
            self.sizes.append(len(pickle.dumps(techniques(run)[0])))

    trainer([size := Size(), lc.Pruning(0.9, schedule=RAMP)]).fit(Wide(), Loader())
    assert max(size.sizes) < 50_000


def test_a_module_trained_with_pruning_is_saved_whole() -> None:
    model = Net()
    trainer([lc.Pruning(0.9, schedule=RAMP)]).fit(model, Loader())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_same(dict(torch.load(file, weights_only=False).state_dict()), dict(model.state_dict()))


def test_callbacks_do_not_keep_the_model_alive() -> None:
    model, pruning = Net(), lc.Pruning(0.9, schedule=RAMP)
    trainer([pruning]).fit(model, Loader())
    weight = weakref.ref(model.conv1.weight)
    del model, pruning.log, pruning.log_dict  # Lightning's own, bound to the model
    gc.collect()
    assert weight() is None
    assert pruning.state_dict()["constraint"]["conv1.weight"].dtype == torch.uint8


class Compiler:
    """Compiles to kernels of PyTorch; counts the graphs, and how often one is run."""

    def __init__(self) -> None:
        self.num_graphs = self.num_runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.num_graphs += 1
        compiled = lookup_backend("aot_eager")(graph, inputs)

        def run(*args: Any) -> Any:
            self.num_runs += 1
            return compiled(*args)

        return run


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    """One for all tests: what a case without quantizers is compiled to, others of the same network can use again."""
    torch._dynamo.reset()
    yield Compiler()
    torch._dynamo.reset()


class Dirty(Callback):
    """Asserts after each batch that zeros are zeros and that a graph was run, counts graphs."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self.num_graphs: list[int] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.num_runs = self.compiler.num_runs

    def on_train_batch_end(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        assert_zeros(dict(model.named_parameters()), masks_of(run))
        assert self.compiler.num_runs > self.num_runs, "the batch was not run by a graph"
        self.num_graphs.append(self.compiler.num_graphs)


# Graphs with quantizers take seconds each: one for each stage, of which these have as many as "qat".
COMPILED = [case for case in CASES if case.name not in ("qat_histogram", "qat_milestones", "qat_learned_milestones")]


@main_cases(COMPILED)
def test_compiled_module_trains_like_a_plain_one(case: Case, compiler: Compiler) -> None:
    if case.quantizes:
        torch._dynamo.reset()  # graphs of other models do not fit, and there may be eight
    compiled, plain, watch = Net(), Net(), Dirty(compiler)
    for model in (compiled, plain):
        case.prepare(model)
    callbacks = case.callbacks()
    if "compile" in case.refused:
        with pytest.raises(ValueError, match=case.refused["compile"]):
            trainer(callbacks).fit(torch.compile(compiled, backend=compiler), Loader())
        return
    trainer([*callbacks, watch]).fit(torch.compile(compiled, backend=compiler), Loader())
    trainer(case.callbacks()).fit(plain, Loader())
    stages = 3 if case.quantizes else 1  # observers are frozen, then batch norms
    assert len(set(watch.num_graphs)) <= stages, "a change of masks or scales compiled anew"
    assert num_zeros(compiled) >= case.zeros - case.within
    for theirs, mine in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)


class Inside(Net):
    """Its network is a compiled submodule."""

    def __init__(self, backend: Any = None) -> None:
        super().__init__()
        network = Net()
        self.network = network if backend is None else torch.compile(network, backend=backend)
        del self.conv1, self.conv2, self.fc, self.norm1, self.norm2

    def train(self, mode: bool = True) -> Any:
        return LightningModule.train(self, mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)


def test_compiled_submodule_goes_by_its_plain_names(compiler: Compiler) -> None:
    model, watch = Inside(compiler), Dirty(compiler)
    pruning = lc.Pruning(
        {"network.conv*": 0.75, "network.fc": 0.5},
        targets=lc.Targets(include=("network.conv1", "network.conv2", "*.fc"), module="network"),
        schedule=RAMP,
    )
    trainer([pruning, watch]).fit(model, Loader())
    assert num_zeros(model) == 280
    assert set(pruning.state_dict()["constraint"]) == {
        "network._orig_mod.conv1.weight", "network._orig_mod.conv2.weight", "network._orig_mod.fc.weight",
    }  # fmt: skip
    assert watch.num_graphs[0] == watch.num_graphs[-1]


@pytest.mark.parametrize("name", ["snip", "synflow", "bn_scale", "recalibrate"])
def test_probes_of_a_compiled_submodule(name: str, compiler: Compiler) -> None:
    model = Inside(compiler)
    callbacks = case(name).callbacks()
    if name == "bn_scale":
        callbacks[0].targets = lc.Targets(exclude=("network.fc",))
    trainer(callbacks).fit(model, Loader())
    assert abs(num_zeros(model) - case(name).zeros) <= case(name).within


def test_masks_of_a_plain_run_resume_in_a_compiled_one(tmp_path: Any, compiler: Compiler) -> None:
    class Begin(Callback):
        def on_train_start(self, run: Trainer, *args: Any) -> None:
            self.num_masked = num_masked(masks_of(run))

    trainer([lc.Pruning(0.9, schedule=RAMP), save_every_step(tmp_path)]).fit(Net(), Loader())
    begin = Begin()
    compiled = torch.compile(Net(), backend=compiler)
    trainer([lc.Pruning(0.9, schedule=RAMP), begin]).fit(compiled, Loader(), ckpt_path=tmp_path / "step=8.ckpt")
    assert begin.num_masked == 346
