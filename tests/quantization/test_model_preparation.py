"""Quantizers of models whose layers are made, or made anew, after ``Callback.setup``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lightning_compress as lc
from lightning_compress.quantization.insertion import quantizers_of
from tests.cases import LEARNED, Loader, Net, assert_same, trainer


class Rebuilt(Net):
    """Replaces its last layer in a hook."""

    def rebuild(self) -> None:
        if not hasattr(self, "rebuilt"):
            self.fc = nn.Linear(8, 4)
            self.fc.load_state_dict(Net().fc.state_dict())
            self.rebuilt = True


class InSetup(Rebuilt):
    def setup(self, stage: str) -> None:
        self.rebuild()


class InConfigureModel(Rebuilt):
    def configure_model(self) -> None:
        self.rebuild()


class OtherInputs(Net):
    """Has no layer of the right size before ``configure_model``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 4)

    def configure_model(self) -> None:
        self.fc = Net().fc


def fitted(model: Net, **options: object) -> dict[str, torch.Tensor]:
    trainer([lc.QuantizationAwareTraining(**options)]).fit(model, Loader())
    return dict(model.state_dict())


@pytest.mark.parametrize("model", [InSetup, InConfigureModel, OtherInputs])
@pytest.mark.parametrize("options", [{}, {"weights": LEARNED, "activations": LEARNED}], ids=["observed", "learned"])
def test_layers_that_are_made_late_are_quantized(model: type[Net], options: dict[str, object]) -> None:
    late, early = fitted(model(), **options), fitted(Net(), **options)
    assert "fc.quant_weight_scale" in late
    assert_same({name: late[name] for name in sorted(late)}, {name: early[name] for name in sorted(early)})


def test_a_second_fit_keeps_the_quantizers() -> None:
    model = InConfigureModel()
    fitted(model)
    before = [ref.quantizer for ref in quantizers_of(model)]
    fitted(model)
    assert [ref.quantizer for ref in quantizers_of(model)] == before


def test_a_glob_that_matches_nothing_in_the_end() -> None:
    with pytest.raises(ValueError, match="'head' matches nothing"):
        fitted(InConfigureModel(), weights={"head": lc.Int(4), "*": lc.Int(8)})


def test_the_hook_of_the_model_is_its_own_after_the_fit() -> None:
    model = InConfigureModel()
    fitted(model)
    assert "configure_model" not in vars(model)
