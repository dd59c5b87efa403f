"""Every network of the zoo through every technique: a number or a refusal of ours, and no low number unexplained."""

from __future__ import annotations

import pytest

from tests.zoo.explanations import EXPLANATIONS
from tests.zoo.networks import FAMILIES, NETWORKS
from tests.zoo.runner import run
from tests.zoo.techniques import TECHNIQUES


def test_names_and_explanations_are_those_of_networks() -> None:
    assert len(NETWORKS) == sum(len(makes) for makes in FAMILIES.values()), "two networks of one name"
    titles = {column.title for columns in TECHNIQUES.values() for column in columns}
    assert {name for name, _ in EXPLANATIONS} <= set(NETWORKS)
    assert {title for _, title in EXPLANATIONS} <= titles


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("technique", TECHNIQUES)
def test_network(technique: str, name: str) -> None:
    pytest.importorskip("transformers")
    for cell in run(technique, name):
        assert not cell.failure, f"{cell.title}: {cell.failure}"
        assert (name, cell.title) in EXPLANATIONS or not cell.is_low, f"{cell.title}: {cell.number:.1f}"
