from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from lightning_compress.quantization.call_patcher import CallSite, patcher_of
from lightning_compress.quantization.tracing import Graph, record_graph


class Residual(nn.Module):
    """Convolution with a batch norm, and an in-place residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return F.relu(y)


def record(model: nn.Module, x: Tensor) -> Graph:
    with record_graph(model) as graph, torch.no_grad():
        model(x)
    return graph


def calls(graph: Graph) -> list[tuple[str, str]]:
    return [(node.module, node.call.function) for node in graph.nodes]


def test_calls_in_order_with_the_modules_that_make_them() -> None:
    graph = record(Residual().eval(), torch.randn(1, 2, 3, 3))
    assert calls(graph) == [("conv", "conv2d"), ("norm", "batch_norm"), ("", "add"), ("", "relu")]
    assert graph.called == {"", "conv", "norm"}


def test_values_flow_through_calls_in_place() -> None:
    graph = record(Residual().eval(), torch.randn(1, 2, 3, 3))
    conv, norm, add, relu = graph.nodes
    assert conv.weight == "weight"
    assert norm.operands[0] == conv.outputs[0]
    # An in-place call returns a new value of the same tensor.
    assert add.operands == (norm.outputs[0], conv.operands[0])
    assert relu.operands == add.outputs != norm.outputs
    assert graph.producer[relu.operands[0]] is add
    assert conv.operands[0] not in graph.producer
    assert set(graph.parameters.values()) >= {"conv.weight", "norm.running_mean"}


@pytest.mark.parametrize("statement", [True, False])
def test_values_read_from_the_tensor_written_into_are_listed(statement: bool) -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            z = y.mul_(x)
            return (y if statement else z).relu_().reshape(-1)

    x = torch.randn(3)
    expected = ((x + 1) * x).relu()
    with record_graph(model := Writes()) as graph:
        assert torch.equal(model(x), expected)
    _, mul, relu, reshape = graph.nodes
    assert relu.operands == mul.outputs
    assert reshape.operands == relu.outputs
    assert graph.written == (set(mul.outputs) if statement else set())


def test_repeated_passes_are_numbered() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.relu(x).relu().relu())

    graph = record(nn.Sequential(Shared(), Shared()), torch.randn(2))
    assert [(node.module, node.call) for node in graph.nodes[:4]] == [
        ("0.relu", CallSite("relu", 0, 0)),
        ("0", CallSite("relu")),
        ("0", CallSite("relu", 1)),
        ("0.relu", CallSite("relu", 0, 1)),
    ]
    assert graph.nodes[4].call == CallSite("relu", 0, 0)


def test_only_runs_of_the_model_itself_are_the_same_pass() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.ModuleList([Residual()])

        def forward(self, x: Tensor) -> Tensor:
            return self.net[0](x) + self.net[0](x)

    graph = record(Views().eval(), torch.randn(1, 2, 3, 3))
    assert {node.call.repeat for node in graph.nodes if node.module.startswith("net.0")} == {0, 1}
    net = Residual().eval()
    with record_graph(net) as graph, torch.no_grad():
        net(torch.randn(1, 2, 3, 3))
        net(torch.randn(1, 2, 3, 3))
    assert {node.call.repeat for node in graph.nodes} == {0}


def test_a_subgraph_has_no_producers_outside() -> None:
    graph = record(nn.Sequential(Residual(), Residual()).eval(), torch.randn(1, 2, 3, 3))
    part = graph.within(["1"])
    assert {node.module for node in part.nodes} == {"1", "1.conv", "1.norm"}
    assert part.nodes[0].operands[0] not in part.producer
    assert graph.within([""]).nodes == graph.nodes


def test_recording_leaves_no_hooks() -> None:
    model = Residual()
    record(model, torch.randn(2, 2, 3, 3))
    with pytest.raises(RuntimeError):
        record(model, torch.randn(2, 9, 3, 3))
    for module in model.modules():
        assert patcher_of(module) is None
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert _get_current_function_mode_stack() == []
