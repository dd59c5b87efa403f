"""Layers without gradients or frozen, optimizers shared or replaced, weights changed behind the optimizer's back."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import Callback
from torch import Tensor, nn

import lightning_compress as lc
from tests.cases import AT_START, DYNAMIC, RAMP, Loader, Net, TwoPlayers, load, num_zeros, save_every_step, trainer

TECHNIQUES: dict[str, Callable[[], Any]] = {
    "pruning": lambda: lc.Pruning(0.8, schedule=RAMP),
    "layerwise": lambda: lc.Pruning(0.8, schedule=RAMP, scope="layer"),
    "rigl": lambda: lc.Pruning(0.8, growth=lc.RigL(), schedule=DYNAMIC),
    "clustering": lambda: lc.WeightClustering(4, schedule=RAMP),
    "dkm": lambda: lc.WeightClustering(4, method="dkm", schedule=RAMP),
}
every_technique = pytest.mark.parametrize("make", TECHNIQUES.values(), ids=list(TECHNIQUES))


def warnings_of(callback: Callback, model: Net, *others: Callback, epochs: int = 5, **options: Any) -> list[str]:
    """Sentences of a technique in a fit of 5 batches an epoch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer([callback, *others], max_epochs=epochs, **options).fit(model, Loader())
    name = type(callback).__name__
    return [str(warning.message) for warning in caught if str(warning.message).startswith(f"{name}: ")]


class StochasticDepth(Net):
    """Skips its second convolution in every other step."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = x if self.global_step % 2 else self.norm2(self.conv2(x)).relu()
        return self.fc(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("distribution", [None, lc.ERK()])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_growth_where_a_layer_had_no_gradient(every: int, distribution: Any) -> None:
    model, schedule = StochasticDepth(), lc.Schedule(begin=0.0, end=0.7, every=every, curve="one_shot")
    trainer([lc.Pruning(0.8, growth=lc.RigL(), distribution=distribution, schedule=schedule)]).fit(model, Loader())
    assert num_zeros(model) >= 307


# A state of another configuration.

OPTIONS = {
    "sparsity": (lambda: lc.Pruning(0.5, schedule=RAMP), lambda: lc.Pruning(0.9, schedule=RAMP)),
    "less sparsity": (lambda: lc.Pruning(0.9, schedule=RAMP), lambda: lc.Pruning(0.5, schedule=RAMP)),
    "pattern": (lambda: lc.Pruning(0.5), lambda: lc.Pruning(0.5, pattern=lc.NM(2, 4))),
    "globs": (lambda: lc.Pruning({"conv*": 0.5, "fc": 0.5}), lambda: lc.Pruning({"conv*": 0.5, "fc": 0.8})),
    "distribution": (lambda: lc.Pruning(0.5), lambda: lc.Pruning(0.5, scope="layer")),
    "growth": (lambda: lc.Pruning(0.5), lambda: lc.Pruning(0.5, growth=lc.SET())),
    "num_clusters": (lambda: lc.WeightClustering(8), lambda: lc.WeightClustering(4)),
    "granularity": (lambda: lc.WeightClustering(2), lambda: lc.WeightClustering(2, granularity="channel")),
    "method": (lambda: lc.WeightClustering(4), lambda: lc.WeightClustering(4, method="dkm")),
    "schedule": (lambda: lc.WeightClustering(4, schedule=RAMP), lambda: lc.WeightClustering(4, schedule=AT_START)),
}


@pytest.mark.parametrize("step", [3, 10])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_state_of_another_configuration(option: str, step: int, tmp_path: Path) -> None:
    first, then = OPTIONS[option]
    trainer([save_every_step(tmp_path), first()]).fit(Net(), Loader())
    with pytest.raises(ValueError, match=r"resumes from a state with .* and now has .*: pass the same value"):
        trainer([then()], max_epochs=3).fit(Net(), Loader(), ckpt_path=tmp_path / f"step={step}.ckpt")
    trainer([first()], max_epochs=3).fit(Net(), Loader(), ckpt_path=tmp_path / f"step={step}.ckpt")


def test_a_callback_that_was_changed_between_two_fits() -> None:
    callback, model = lc.Pruning(0.5, schedule=RAMP), Net()
    trainer([callback]).fit(model, Loader())
    callback.sparsity = 0.9
    with pytest.raises(ValueError, match=r"Pruning resumes .* sparsity=0\.5 and now has sparsity=0\.9"):
        trainer([callback]).fit(model, Loader())


def test_the_configuration_is_plain_data(tmp_path: Path) -> None:
    trainer([save_every_step(tmp_path), lc.Pruning(0.5, score=lc.Taylor(), schedule=RAMP)]).fit(Net(), Loader())
    (state,) = (s for key, s in load(tmp_path / "step=10.ckpt")["callbacks"].items() if key.startswith("Pruning"))
    assert state["configuration"]["sparsity"] == 0.5
    assert state["configuration"]["score"] == {
        "class_path": "lightning_compress.pruning.scores.Taylor",
        "init_args": {},
    }


# Optimizers.


class Shared(Net):
    """Two optimizers on the same weights, by turns or one after the other."""

    def __init__(self, turn: Callable[[int], int]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.turn = turn
        self.zeros: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()[self.turn(self.current_epoch * 5 + batch_idx)]
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()
        self.zeros.append(num_zeros(self))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(self.parameters())]


@pytest.mark.parametrize("turn", [lambda i: i % 2, lambda i: int(i > 2), lambda i: int(i < 3)])
def test_zeros_hold_after_a_step_of_any_optimizer_of_the_weights(turn: Callable[[int], int]) -> None:
    model, callback = Shared(turn), lc.Pruning(0.8, schedule=lc.Schedule(begin=1, end=6, every=1))
    trainer([callback]).fit(model, Loader())
    assert model.zeros == sorted(model.zeros)
    assert model.zeros[5:] == [307] * 5
    assert callback.steps == 10


class Replaces(Callback):
    """Replaces the optimizers at the start of the second epoch."""

    def __init__(self, parameters: Callable[[Net], list[nn.Parameter]]) -> None:
        self.parameters = parameters

    def on_train_epoch_start(self, run: Any, model: Any) -> None:
        if run.current_epoch == 1:
            run.strategy.optimizers = [torch.optim.Adam(self.parameters(model))]
            run.strategy.lr_scheduler_configs = []


@every_technique
def test_an_optimizer_that_was_replaced_is_followed(make: Callable[[], Any]) -> None:
    callback, model = make(), Net()
    assert warnings_of(callback, model, Replaces(lambda net: list(net.parameters())), epochs=2) == []
    assert callback.steps == 10
    if isinstance(callback, lc.Pruning):
        assert num_zeros(model) >= 307
    else:
        assert len(model.conv1.weight.unique()) <= 4


def test_an_optimizer_that_was_replaced_by_one_without_the_weights() -> None:
    callback = lc.Pruning(0.8, schedule=lc.Schedule(begin=8, end=9, every=1))
    (said, _) = warnings_of(callback, Net(), Replaces(lambda net: list(net.conv1.parameters())), epochs=2)
    assert "do not hold 'conv2.weight', 'fc.weight'" in said


class Reset(Callback):
    """Replaces a parameter in the second epoch."""

    def on_train_epoch_start(self, run: Any, model: Any) -> None:
        if run.current_epoch == 1:
            model.fc = nn.Linear(8, 4)


@every_technique
def test_a_parameter_that_was_replaced(make: Callable[[], Any]) -> None:
    reached: list[bool] = []

    class Reached(Callback):
        def on_train_end(self, run: Any, model: Any) -> None:
            reached.append(run.callbacks[0].reached)

    said = warnings_of(make(), Net(), Reset(), Reached(), epochs=5)
    assert "'fc.weight' were replaced in the model" in said[0]
    assert "ended before the target was reached" in said[1]
    assert reached == [False]


class Outside(Net):
    """Steps its weights by hand."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer_closure()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.data.add_(parameter.grad, alpha=-0.01)


@pytest.mark.parametrize("epochs", [1, 4, 8])
@every_technique
def test_steps_outside_of_the_optimizer(make: Callable[[], Any], epochs: int) -> None:
    callback = make()
    said = warnings_of(callback, Outside(), epochs=epochs)
    assert any("change without a completed step of the optimizers" in sentence for sentence in said)
    assert any("ended before the target was reached" in sentence for sentence in said)


@every_technique
def test_steps_outside_of_the_optimizer_in_a_short_fit(make: Callable[[], Any]) -> None:
    said = warnings_of(make(), Outside(), epochs=1, limit_train_batches=3)  # fewer than are compared from time to time
    assert any("ended before the target was reached" in sentence for sentence in said)


@pytest.mark.parametrize("accumulate", [7, 25])
def test_few_steps_are_no_steps_outside(accumulate: int) -> None:
    callback = lc.Pruning(0.8, schedule=lc.Schedule(begin=0.0, end=0.7, every=1))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Pruning:")
        trainer([callback], max_epochs=10, accumulate_grad_batches=accumulate).fit(Net(), Loader())


class Noise(Callback):
    """Adds noise to the weights after each step."""

    def on_train_batch_end(self, run: Any, model: Any, *args: Any) -> None:
        with torch.no_grad():
            model.conv1.weight.add_(torch.randn_like(model.conv1.weight), alpha=1e-3)


@pytest.mark.parametrize("name", ["pruning", "clustering"])
def test_weights_that_are_changed_after_the_step(name: str) -> None:
    callback, model = TECHNIQUES[name](), Net()
    said = warnings_of(callback, model, Noise(), epochs=5)
    assert len(said) == 1
    assert "were changed after the optimizer's step()" in said[0]
    if name == "pruning":
        assert num_zeros(model) >= 307
    else:
        assert len(model.conv1.weight.unique()) <= 4


def test_an_optimizer_without_hooks_is_named() -> None:
    class Odd(torch.optim.SGD):
        def __init__(self, parameters: Any) -> None:
            self.defaults, self.state, self.param_groups = {}, {}, [{"params": list(parameters), "lr": 0.1}]

        def step(self, closure: Any = None) -> Any:
            return closure() if closure else None

    class Model(Net):
        def configure_optimizers(self) -> Any:
            return Odd(self.parameters())

    for make in (*TECHNIQUES.values(), lc.QuantizationAwareTraining):
        with pytest.raises(ValueError, match=r"^Odd calls no hooks around its steps"):
            trainer([make()]).fit(Model(), Loader())


def test_fabric_is_named() -> None:
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=[lc.Pruning(0.5)])
    net = nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"^Pruning does not support Lightning Fabric"):
        fabric.setup(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"^Pruning does not support Lightning Fabric"):
        lc.Pruning(0.5).setup(fabric, net, "fit")
    optimizer = fabric.setup_optimizers(torch.optim.SGD(net.parameters(), lr=0.1))  # of a module that Fabric lacks
    net(torch.ones(1, 8)).sum().backward()
    with pytest.raises(ValueError, match=r"^Pruning does not support Lightning Fabric"):
        optimizer.step()


# Frozen layers.


class Freezes(Callback):
    """Freezes a layer from one epoch to another."""

    def __init__(self, first: int = 1, last: int = 99) -> None:
        self.first, self.last = first, last
        self.kept = torch.empty(0)

    def on_train_epoch_start(self, run: Any, model: Any) -> None:
        if run.current_epoch == self.first:
            model.conv2.requires_grad_(False)
            self.kept = model.conv2.weight.detach().clone()
        if run.current_epoch == self.last:
            model.conv2.requires_grad_(True)


@pytest.mark.parametrize(
    "options", [{}, {"pattern": lc.NM(2, 4)}, {"pattern": lc.Channels(), "scope": "layer"}], ids=str
)
def test_a_frozen_layer_is_not_pruned_any_more(options: dict[str, Any]) -> None:
    freezes, model = Freezes(), Net()
    (said,) = warnings_of(lc.Pruning(0.5, schedule=lc.Schedule(begin=0.1, end=0.7), **options), model, freezes)
    assert "'conv2.weight' are frozen before the target is reached" in said
    assert torch.equal(model.conv2.weight, freezes.kept)
    assert int((model.conv1.weight == 0).sum()) > 0


@every_technique
def test_a_frozen_layer_is_not_changed_any_more(make: Callable[[], Any]) -> None:
    freezes, model = Freezes(), Net()
    said = warnings_of(make(), model, freezes)
    assert len(said) <= 1
    assert torch.equal(model.conv2.weight, freezes.kept)


def test_a_layer_that_is_trained_again_is_pruned_to_the_target() -> None:
    model = Net()
    trainer([lc.Pruning(0.8, scope="layer", schedule=RAMP), Freezes(0, 3)], max_epochs=5).fit(model, Loader())
    assert int((model.conv2.weight == 0).sum()) == round(64 * 0.8)
    model = Net()
    trainer([lc.WeightClustering(4, schedule=RAMP), Freezes(0, 3)], max_epochs=5).fit(model, Loader())
    assert len(model.conv2.weight.unique()) <= 4


class Toggles(TwoPlayers):
    """Sets the other optimizer's parameters aside in each step, so that they look frozen."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch) + self.discriminator(self(batch[0])).mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)


def test_toggled_parameters_are_not_frozen() -> None:
    model = Toggles()
    said = warnings_of(lc.Pruning(0.8, scope="layer", schedule=lc.Schedule(begin=1, end=7, every=1)), model, epochs=2)
    assert said == []
    for weight in (model.conv1.weight, model.fc.weight, model.discriminator.weight):
        assert int((weight == 0).sum()) == round(weight.numel() * 0.8)


def test_a_fit_resumes_with_a_layer_that_was_frozen_since(tmp_path: Path) -> None:
    for name, make in TECHNIQUES.items():
        trainer([save_every_step(tmp_path / name), make(), Freezes()], max_epochs=3).fit(Net(), Loader())
        model = Net()
        model.conv2.requires_grad_(False)
        path = tmp_path / name / "step=8.ckpt"
        trainer([make()], max_epochs=3).fit(model, Loader(), ckpt_path=path)
        assert torch.equal(model.conv2.weight, load(path)["state_dict"]["conv2.weight"])


# Layers without elements.


class Headless(Net):
    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.head = nn.Linear(8, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu())).relu().mean(dim=(2, 3))
        self.head(x)
        return self.fc(x)


@pytest.mark.parametrize(
    "make",
    [
        *TECHNIQUES.values(),
        lambda: lc.Pruning(0.5, distribution=lc.ERK()),
        lambda: lc.Pruning(0.5, pattern=lc.NM(2, 4)),
        lambda: lc.Pruning(0.5, pattern=lc.Block((4, 4))),
        lambda: lc.Pruning(0.5, score=lc.SNIP(), schedule=AT_START),
        lambda: lc.WeightClustering(4, granularity="channel"),
        lc.QuantizationAwareTraining,
    ],
)
def test_layers_without_elements_are_passed_over(make: Callable[[], Any]) -> None:
    model = Headless()
    trainer([make()]).fit(model, Loader())
    assert model.head.weight.shape == (0, 8)
