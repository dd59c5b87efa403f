"""Programs of ``torch.export``: bytes for weights, the model's own numbers, and nothing of this package needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lightning_compress as lc
import lightning_compress.models.networks
from lightning_compress.export import program as programs
from lightning_compress.export.capture import capture, run_copy
from lightning_compress.export.program import ProgramFile, ProgramOperators
from lightning_compress.quantization.lowering import lower
from tests.cases import assert_same
from tests.export.nets import SUBJECTS, outputs

SUBJECT = SUBJECTS["residual"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return SUBJECT.quantized()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("program")


@pytest.fixture(scope="module")
def file(model: nn.Module, folder: Path) -> ProgramFile:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        # The process that runs the file also tells what it has loaded; to start one more takes seconds.
        tells = f"\nopen({str(folder / 'modules')!r}, 'w').write(' '.join(n for n, m in sys.modules.items() if m))"
        patch.setattr(programs, "_SCRIPT", programs._SCRIPT + tells)
        file = lc.export_program(model, folder / "model.pt2", SUBJECT.batch(1))
    assert_same({**model.state_dict()}, before)
    return file


@pytest.fixture
def no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are run in this process, of those whose like another process has run: it takes seconds to start one."""

    def run_here(code: str, path: Path, inputs: Any) -> list[Tensor]:
        args, kwargs = inputs
        with torch.no_grad():
            return tree_leaves(torch.export.load(path).module()(*args, **kwargs))

    monkeypatch.setattr(programs, "run_in_subprocess", run_here)


def test_what_was_measured(file: ProgramFile) -> None:
    assert file.num_bytes == file.path.stat().st_size
    assert file.latency > 0
    assert file.difference < 1e-3
    assert file.steps is not None
    assert max(file.steps.values()) <= 1
    assert file.unquantized_ops == ()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_batch(model: nn.Module, file: ProgramFile, size: int) -> None:
    loaded = torch.export.load(file.path).module()
    (ours,), (theirs,) = outputs(model, SUBJECT.batch(size)), outputs(loaded, SUBJECT.batch(size))
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_only_operators_of_pytorch(file: ProgramFile) -> None:
    calls = [node for node in torch.export.load(file.path).graph.nodes if node.op == "call_function"]
    assert {node.target.namespace for node in calls} == {"aten"}


def test_weights_are_bytes_and_nothing_else_is_kept(model: nn.Module, file: ProgramFile) -> None:
    program = torch.export.load(file.path)
    stored = [*program.constants.values(), *program.state_dict.values()]
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert sorted(t.numel() for t in stored if t.dtype == torch.int8) == sorted(w.numel() for w in weights)
    assert not [t for t in stored if t.is_floating_point() and t.ndim > 1]


def test_another_process_needs_only_pytorch(file: ProgramFile, folder: Path) -> None:
    loaded = (folder / "modules").read_text().split()
    assert "torch" in loaded
    assert not [name for name in loaded if name.startswith("lightning")]


def test_a_third_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(programs, "run_in_subprocess", lambda code, path, inputs: outputs(quantized, inputs[0]))
    quantized = lc.calibrate(timm.create_model("resnet20_cifar"), [torch.randn(4, 3, 16, 16)])
    file = lc.export_program(quantized, tmp_path / "model.pt2", torch.randn(2, 3, 16, 16))
    assert file.num_bytes < 0.3 * 4 * sum(p.numel() for p in quantized.parameters())


@pytest.mark.usefixtures("no_other_process")
def test_weights_alone_and_dicts(tmp_path: Path) -> None:
    subject = SUBJECTS["named"]
    model = lc.calibrate(subject.make(), [subject.batch(4)], weights=lc.Int(4), activations=None)
    file = lc.export_program(model, tmp_path / "model.pt2", subject.batch(2))
    assert file.difference < 1e-5
    assert list(torch.export.load(file.path).module()(**subject.batch(3))) == ["logits", "hidden"]


@pytest.mark.usefixtures("no_other_process")
def test_floats(tmp_path: Path) -> None:
    subject = SUBJECTS["linear"]
    file = lc.export_program(
        lc.float_copy(subject.quantized()), tmp_path / "model.pt2", subject.batch(1), dynamic_batch=False
    )
    assert file.steps is None
    assert file.difference < 1e-6
    with pytest.raises(AssertionError, match=r"size\(\)\[0\] == 1"):
        torch.export.load(file.path).module()(subject.batch(2))


def test_weights_that_are_not_integers_are_noticed(model: nn.Module) -> None:
    inputs = ((SUBJECT.batch(2),), {})
    lowered = lower(run_copy(model, inputs), ProgramOperators())
    program = capture(lowered.model, inputs, dynamic_batch=True)
    programs._check_integers(program, lowered)
    name = next(name for name, value in program.constants.items() if value.dtype == torch.int8)
    program.constants[name] = program.constants[name] + 1
    with pytest.raises(ValueError, match="The weights of 'conv1' are not stored as INT8 in the file"):
        programs._check_integers(program, lowered)


def test_a_file_that_another_process_cannot_run_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.pt2").write_text("old")
    monkeypatch.setattr(programs, "_SCRIPT", "raise SystemExit('no such operator')")
    with pytest.raises(RuntimeError, match=r"cannot run the \.pt2 file: no such operator"):
        lc.export_program(nn.Linear(2, 2), tmp_path / "model.pt2", torch.ones(2, 2))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
