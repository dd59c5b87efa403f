"""When a WeightClustering clusters beside other techniques, and along which dimensions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

import lightning_compress as lc
from tests.cases import Loader, Net, masks_of, num_masked, trainer


class Record(Callback):
    """After each step: whether weights are clustered, the number of masked weights, and weights that are zero."""

    def __init__(self) -> None:
        self.clustered: list[bool] = []
        self.masked: list[int] = []
        self.zeros: list[int] = []
        self.num_values: list[int] = []

    def on_train_batch_end(self, run: Any, model: Any, *args: Any) -> None:
        clustering = next(callback for callback in run.callbacks if isinstance(callback, lc.WeightClustering))
        weights = [model.get_parameter(name) for name in masks_of(run)]
        self.clustered.append(any(assignment is not None for assignment in clustering.constraint.assignments))
        self.masked.append(num_masked(masks_of(run)))
        self.zeros.append(sum(int((weight == 0).sum()) for weight in weights))
        self.num_values.append(max(len(weight.unique()) for weight in weights))


def test_clustering_waits_for_the_final_sparsity() -> None:
    record = Record()
    pruning = lc.Pruning(0.7, schedule=lc.Schedule(begin=1, end=6, every=1))
    clustering = lc.WeightClustering(4, schedule=lc.Schedule(begin=0.0, curve="one_shot"))
    trainer([pruning, clustering, record]).fit(Net(), Loader())
    assert record.masked[4] < record.masked[5] == 269
    assert record.clustered == [False] * 5 + [True] * 5
    assert record.num_values[5:] == [4] * 5


def test_weights_are_clustered_anew_when_masks_change() -> None:
    record = Record()
    pruning = lc.Pruning(0.7, growth=lc.RigL(), schedule=lc.Schedule(begin=0.0, end=8, every=2, curve="one_shot"))
    clustering = lc.WeightClustering(4, schedule=lc.Schedule(begin=0.0, curve="one_shot"))
    trainer([pruning, clustering, record]).fit(Net(), Loader())
    assert pruning.num_changes >= 4
    assert record.masked == [269] * 10
    # Weights that grow, after every second step, begin at zero; they are no members of the cluster of zeros any more.
    assert record.zeros[0::2] == [269] * 5
    assert max(record.num_values) <= 4


class Transposed(Net):
    """With a transposed convolution, which stores its input channels first."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.up = nn.ConvTranspose2d(4, 6, 3, padding=1)
            self.down = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.down(self.up(x)))


def test_channels_of_transposed_convolutions_have_their_codebooks() -> None:
    model = Transposed()
    clustering = lc.WeightClustering(
        2, granularity="channel", schedule=lc.Schedule(begin=0.0, end=4, every=1), targets=lc.Targets(include=("up",))
    )
    trainer([clustering]).fit(model, Loader())
    assert model.up.weight.shape == (4, 6, 3, 3)
    assert [len(model.up.weight[:, channel].unique()) for channel in range(6)] == [2] * 6
    assert len(model.up.weight.unique()) == 12


def test_groups_of_transposed_convolutions_lie_along_their_inputs() -> None:
    model = Transposed()
    schedule = lc.Schedule(begin=0.0, end=4, every=1)
    trainer([lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=schedule, targets=lc.Targets(include=("up",)))]).fit(
        model, Loader()
    )
    assert ((model.up.weight == 0).sum(dim=0) == 2).all()


class Gradients(Callback):
    """Weights of the linear layer and their gradients before each step, as the backward pass leaves them."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, run: Any, model: Any, optimizer: Any) -> None:
        self.weights.append(model.fc.weight.detach().clone())
        self.gradients.append(model.fc.weight.grad.clone())


class After(Callback):
    """Call a function after a number of steps."""

    def __init__(self, num_steps: int, call: Callable[[], None]) -> None:
        self.num_steps, self.call = num_steps, call

    def on_train_batch_end(self, run: Any, *args: Any) -> None:
        if run.global_step == self.num_steps:
            self.call()


def test_weighted_clustering_adds_up_the_squares_of_dense_gradients() -> None:
    gradients, squares = Gradients(), []
    clustering = lc.WeightClustering(4, weighted=True, schedule=lc.Schedule(begin=5, curve="one_shot"))
    after = After(4, lambda: squares.append(clustering.state_dict()["squares"]["fc.weight"].clone()))
    trainer([gradients, clustering, after]).fit(Net(), Loader())
    expected = torch.stack(gradients.gradients[:4]).square().sum(dim=0)
    torch.testing.assert_close(squares[0], expected)
    # They are read no more once the clusters are final.
    torch.testing.assert_close(
        clustering.state_dict()["squares"]["fc.weight"], torch.stack(gradients.gradients[:5]).square().sum(dim=0)
    )


@pytest.mark.parametrize("gradient", ["mean", "sum"])
def test_a_centroid_moves_by_the_gradients_of_its_members(gradient: Literal["mean", "sum"]) -> None:
    gradients, model = Gradients(), Plain()
    clustering = lc.WeightClustering(4, gradient=gradient, schedule=lc.Schedule(begin=0.0, curve="one_shot"))
    trainer([gradients, clustering], max_steps=3).fit(model, Loader())
    before, grad = gradients.weights[-1], gradients.gradients[-1]
    for centroid in before.unique():
        members = before == centroid
        moved = grad[members].sum() if gradient == "sum" else grad[members].mean()
        torch.testing.assert_close(model.fc.weight[members], (centroid - 0.1 * moved).expand(int(members.sum())))


class Plain(Net):
    """With plain gradient descent, so that a step is known."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def interrupt() -> None:
    raise KeyError("interrupted")


def test_soft_assignments_end_with_the_fit() -> None:
    model, x = Net(), torch.randn(2, 4, 6, 6)
    clustering = lc.WeightClustering(4, method="dkm", schedule=lc.Schedule(begin=0.0, end=8))
    with pytest.raises(KeyError):
        trainer([clustering, After(4, interrupt)]).fit(model, Loader())
    plain = Net()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.eval()(x), plain.eval()(x), rtol=0, atol=0)
    assert len(model.fc.weight.unique()) > 4


def test_soft_assignments_become_clusters() -> None:
    model, x = Net(), torch.randn(2, 4, 6, 6)
    soft: list[Tensor] = []
    clustering = lc.WeightClustering(4, method="dkm", schedule=lc.Schedule(begin=0.0, end=6))
    # In the sixth batch the layers still compute with soft assignments of free weights, then with their own weights.
    record = [After(number, lambda: soft.append(model.fc(torch.eye(8)).detach())) for number in (4, 8)]
    own: list[Tensor] = []
    record += [After(number, lambda: own.append((model.fc.weight.T + model.fc.bias).detach())) for number in (4, 8)]
    num_hooks: list[int] = []
    record += [After(number, lambda: num_hooks.append(len(model.fc._forward_pre_hooks))) for number in (4, 8)]
    trainer([clustering, *record]).fit(model, Loader())
    assert not torch.allclose(soft[0], own[0], atol=1e-4)
    torch.testing.assert_close(soft[1], own[1])
    assert num_hooks == [1, 0]
    assert len(model.fc.weight.unique()) <= 4
    assert model(x).isfinite().all()


def test_clusters_of_each_layer_are_counted() -> None:
    clustering = lc.WeightClustering(4, schedule=lc.Schedule(begin=0.0, curve="one_shot"))
    model, counts = Net(), []
    assert clustering.layer_metrics(model) == {}
    after = After(2, lambda: counts.append(clustering.layer_metrics(model)))
    trainer([clustering, after]).fit(model, Loader())
    assert counts == [{"clusters": {f"{name}.weight": 4.0 for name in ("conv1", "conv2", "fc")}}]


def test_weights_are_clustered_at_the_times_of_the_schedule() -> None:
    clustering = lc.WeightClustering(4, schedule=lc.Schedule(begin=1, end=9, every=4))
    changes: list[int] = []
    trainer([clustering, *(After(n, lambda: changes.append(clustering.num_changes)) for n in range(1, 11))]).fit(
        Net(), Loader()
    )
    assert [changes.index(number) + 1 for number in sorted(set(changes))] == [1, 5, 9]


class Sharpness(Callback):
    """Sharpness of soft assignments in the forward pass of each batch."""

    def __init__(self) -> None:
        self.seen: list[float | None] = []

    def on_train_batch_start(self, run: Any, *args: Any) -> None:
        clustering = next(callback for callback in run.callbacks if isinstance(callback, lc.WeightClustering))
        self.seen.append(next((clusters.sharpness for clusters in clustering._soft.values()), None))


@pytest.mark.parametrize("end", [8, 0.8])
def test_soft_assignments_become_sharper_with_the_steps_that_are_done(end: int | float) -> None:
    clustering = lc.WeightClustering(4, method="dkm", schedule=lc.Schedule(begin=0.0, end=end))
    record = Sharpness()
    trainer([clustering, record]).fit(Net(), Loader())
    # The Trainer has 10 steps. In the first batch the weights become soft; in the next one, one step of eight is done.
    assert record.seen[0] is not None
    assert record.seen[1:8] == pytest.approx([step / 8 for step in range(1, 8)])
    assert record.seen[8:] == [None, None]


def test_the_fraction_of_clustered_weights_is_measured() -> None:
    clustering = lc.WeightClustering(4, schedule=lc.Schedule(begin=3, end=7, every=2, curve="linear"))
    assert clustering.fit_metrics() == {}
    shares: list[float] = []
    trainer(
        [clustering, *(After(n, lambda: shares.append(clustering.fit_metrics()["clustered"])) for n in (1, 6, 8))]
    ).fit(Net(), Loader())
    assert shares[0] == 0.0
    assert shares[1] == pytest.approx(0.5, abs=0.01)
    assert shares[2] == 1.0


def test_a_layer_that_stays_whole_is_named(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("lightning.pytorch").propagate = True
    clustering = lc.WeightClustering(64, schedule=lc.Schedule(begin=0.0, curve="one_shot"))
    with caplog.at_level(logging.INFO):
        trainer([clustering], max_steps=1).fit(Net(), Loader())
    assert set(clustering.unclustered)
    for name, why in clustering.unclustered.items():
        assert f"WeightClustering does not cluster {name!r}: {why}." in caplog.text


def test_compiled_models_are_clustered_but_not_softly() -> None:
    schedule = lc.Schedule(begin=0.0, curve="one_shot")
    compiled = torch.compile(Net(), backend="eager")
    clustering = lc.WeightClustering(4, schedule=schedule)
    trainer([clustering], max_steps=2).fit(compiled, Loader())  # type: ignore[arg-type]
    assert clustering.reached
    soft = lc.WeightClustering(4, method="dkm", schedule=lc.Schedule(end=4))
    with pytest.raises(ValueError, match="does not support compiled models"):
        trainer([soft]).fit(torch.compile(Net(), backend="eager"), Loader())  # type: ignore[arg-type]


class Own(nn.Module):
    """A matrix product of a kind that is not known, and that does not tell the dimension of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(32.0).cos().view(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,bi->bo", self.weight, x + 1.0).tanh()


def test_layers_of_an_unknown_kind_have_their_output_channels_first() -> None:
    model = Net()
    model.fc = Own()
    targets = lc.Targets(include=("fc",), types=(Own,))
    schedule = lc.Schedule(begin=0.0, curve="one_shot")
    trainer([lc.WeightClustering(2, granularity="channel", schedule=schedule, targets=targets)]).fit(model, Loader())
    assert [len(row.unique()) for row in model.fc.weight] == [2] * 4
