from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lightning_compress as lc
from lightning_compress.trainer.configuration import check_same_configuration, configuration_of


class Plain:
    """A score of a user that is no dataclass."""


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.float64(0.5), 0.5),
        ({"conv*": np.float32(0.5)}, {"conv*": 0.5}),
        (True, True),
        (None, None),
        ("channel", "channel"),
        (Plain(), f"{__name__}.Plain"),
        (lc.NM(2, 4), {"class_path": "lightning_compress.pruning.patterns.NM", "init_args": {"n": 2, "m": 4}}),
    ],
)
def test_values_become_plain_data(value: Any, stored: Any) -> None:
    (plain,) = configuration_of(Holder(value), ["value"]).values()
    assert plain == stored
    assert type(plain) is type(stored)


def test_the_option_and_both_values_are_named() -> None:
    old, new = (configuration_of(Holder(pattern), ["value"]) for pattern in (lc.NM(2, 4), lc.Unstructured()))
    with pytest.raises(ValueError, match=r"^Pruning .* value=NM\(n=2, m=4\) and now has value=Unstructured\(\): pass"):
        check_same_configuration("Pruning", old, new)


def test_states_without_an_option_are_accepted() -> None:
    check_same_configuration("Pruning", {}, {"sparsity": 0.5})
    check_same_configuration("Pruning", {"retired": 1}, {"sparsity": 0.5})


def test_a_specification_of_an_earlier_release_is_the_same() -> None:
    old = {"class_path": "lightning_compress.pruning.patterns.Channels", "init_args": {"round_to": 1, "of": "macs"}}
    now = configuration_of(lc.Pruning(0.5, pattern=lc.Channels(of="macs")), ["pattern"])
    check_same_configuration("Pruning", {"pattern": old}, now)
    for other in ({**old, "init_args": {"round_to": 2, "of": "macs"}}, {**old, "class_path": "x.Depth"}):
        with pytest.raises(ValueError, match="resumes from a state with pattern="):
            check_same_configuration("Pruning", {"pattern": other}, now)
