"""Every project with every technique, by exactly one added line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

import lightning_compress as lc
from lightning_compress.arguments import call_model
from lightning_compress.trainer.compression_callback import CompressionCallback
from tests.fits import make_trainer

pytest.importorskip("transformers")
pytest.importorskip("segmentation_models_pytorch")

from tests.zoo.projects.listing import PROJECTS
from tests.zoo.projects.project import Project

pytestmark = pytest.mark.slow
EACH = pytest.mark.parametrize("name", PROJECTS)


def fit(project: Project, *callbacks: Callback, wrap: Callable = lambda module: module) -> tuple[nn.Module, Trainer]:
    """Train a project with callbacks added; returns the module that is shipped, and the trainer."""
    seed_everything(0)
    module: LightningModule = project.make()
    trainer = make_trainer(*callbacks, **{"max_epochs": 2, **project.options})
    trainer.fit(wrap(module), *(data for data in (project.data(),) if data is not None))
    return module.get_submodule(project.deployed), trainer


def compress(project: Project, technique: CompressionCallback) -> nn.Module:
    """Train a project with a technique that has to reach its target; returns the module that is shipped."""
    network, _ = fit(project, technique)
    assert technique.reached
    return network


@EACH
def test_unchanged(name: str) -> None:
    fit(PROJECTS[name])


@EACH
def test_pruned(name: str) -> None:
    project = PROJECTS[name]
    pruning = lc.Pruning(0.8, targets=project.targets)
    network = compress(project, pruning)
    assert 0.75 < lc.report(network).weights.sparsity < 0.85


@EACH
def test_channels(name: str) -> None:
    project = PROJECTS[name]
    pruning = lc.Pruning(0.5, pattern=lc.Channels(), targets=project.targets)
    if "channels" in project.refusals:
        with pytest.raises(ValueError, match=project.refusals["channels"]):
            fit(project, pruning)
        return
    network = compress(project, pruning)
    inputs = project.inputs()
    network.eval()
    small, _ = lc.shrink(network, inputs)
    assert sum(p.numel() for p in small.parameters()) < 0.95 * sum(p.numel() for p in network.parameters())
    with torch.no_grad():
        torch.testing.assert_close(call_model(small, inputs), call_model(network, inputs), rtol=1e-3, atol=1e-3)


@EACH
def test_clustered(name: str) -> None:
    project = PROJECTS[name]
    clustering = lc.WeightClustering(16, targets=project.targets)
    network = compress(project, clustering)
    parameters, counts = dict(network.named_parameters()), lc.report(network)
    inside = sum(c.num_weights for c in counts.layers if parameters[c.name].unique().numel() <= 16)
    assert inside > 0.9 * counts.weights.num_weights


@EACH
def test_quantized(name: str) -> None:
    project = PROJECTS[name]
    network, _ = fit(project, lc.QuantizationAwareTraining(targets=project.targets))
    inputs = project.inputs()
    simulation = lc.finalize(network, example_inputs=inputs)
    with torch.no_grad():
        call_model(simulation, inputs)


@pytest.mark.parametrize("name", [name for name, project in PROJECTS.items() if project.teacher is not None])
def test_distilled(name: str) -> None:
    project = PROJECTS[name]
    teacher, losses = project.teacher(), project.losses
    _, trainer = fit(project, wrap=lambda module: lc.DistillationModule(module, teacher, losses=losses))
    assert 0 < trainer.callback_metrics["train/kd"] < float("inf")
