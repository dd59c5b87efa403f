"""The catalogue: counts beforehand, limits, and counts on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import is_model_pretrained

import lightning_compress as lc
from lightning_compress.models.catalogue import latency, listing
from lightning_compress.models.catalogue.counting import Sizes, macs, on_meta, sizes
from lightning_compress.models.catalogue.listing import (
    COUNTS,
    FAMILIES,
    default_input_size,
    families_by_name,
    stored_counts,
)
from lightning_compress.models.catalogue.table import Backbone, Catalogue

SAMPLE = ("mobilenetv3_small_050", "efficientvit_m0", "tinynet_e", "repvgg_a0", "squeezenet1_1")
same_timm = pytest.mark.skipif(not stored_counts(), reason="counts are of another version of timm")


@pytest.fixture
def nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr(listing, "on_meta", refuse)


@same_timm
@pytest.mark.parametrize("name", SAMPLE)
def test_counts_are_right(name: str) -> None:
    model, size = on_meta(name), default_input_size(name)
    assert model.default_cfg["input_size"] == (3, size, size)
    assert Sizes(**stored_counts()[name]["sizes"]) == sizes(model)
    found = {str(side): macs(model, (3, side, side)) for side in (size, 32)}
    assert stored_counts()[name]["macs"] == found


@same_timm
def test_every_network_has_its_counts() -> None:
    """If this fails: python tests/benchmarks/backbone_counts.py."""
    assert stored_counts().keys() == families_by_name().keys()
    assert all(str(default_input_size(name)) in found["macs"] for name, found in stored_counts().items())
    assert all("32" in found["macs"] for found in stored_counts().values())


def test_every_family_has_networks() -> None:
    assert set(families_by_name().values()) == set(FAMILIES)
    assert len(families_by_name()) > 150
    # The first family that takes a name would hide one that should: none takes two.
    globs = [(family, name) for family, globs in FAMILIES.items() for g in globs for name in timm.list_models(g)]
    assert len(globs) == len(set(globs)) == len(families_by_name())


@same_timm
@pytest.mark.usefixtures("nothing_is_counted")
def test_a_row() -> None:
    (row,) = lc.backbones("squeezenet1_1").rows
    assert (row.name, row.family, row.params, row.input_size) == ("squeezenet1_1", "SqueezeNet", 1_235_496, 224)
    assert row.macs == 349_151_936
    assert row.fp32_bytes == 4 * row.params
    assert row.latency is None
    assert row.pretrained is True
    flags = {r.name: r.pretrained for r in lc.backbones().rows}
    assert flags == {name: is_model_pretrained(name) for name in families_by_name()}


@same_timm
@pytest.mark.usefixtures("nothing_is_counted")
@pytest.mark.parametrize("glob", ["mobilenetv3*", "MOBILENETV3*", "mobilenetv3", "MobileNetV3"])
def test_globs_are_of_names_or_families(glob: str) -> None:
    found = lc.backbones(glob).rows
    assert [row.name for row in found] == [
        name for name, family in families_by_name().items() if family == "MobileNetV3"
    ]
    assert {row.family for row in found} == {"MobileNetV3"}


@same_timm
@pytest.mark.usefixtures("nothing_is_counted")
def test_limits() -> None:
    everything = lc.backbones().rows
    assert len(everything) == len(families_by_name())
    few = lc.backbones(max_params=3e6, max_macs=100e6).rows
    assert few == tuple(row for row in everything if row.params <= 3e6 and row.macs <= 100e6)
    assert few
    (exact,) = lc.backbones("squeezenet1_1", max_params=1_235_496, max_macs=349_151_936).rows
    assert not lc.backbones("squeezenet1_1", max_params=1_235_495).rows
    assert not lc.backbones("squeezenet1_1", max_macs=exact.macs - 1).rows


@same_timm
@pytest.mark.usefixtures("nothing_is_counted")
def test_small_images_are_counted_beforehand() -> None:
    found = lc.backbones(input_size=32)
    assert {row.input_size for row in found.rows} == {32}
    assert {"vit_tiny_patch16_224", "efficientformer_l1"} < set(found.left_out)
    assert len(found.rows) + len(found.left_out) == len(families_by_name())
    # Those that are too large anyway are not told of.
    assert lc.backbones("vit", input_size=32, max_params=1e6) == Catalogue(())


def test_other_sizes_and_classes_are_counted() -> None:
    (row,) = lc.backbones("squeezenet1_1", input_size=64, num_classes=10).rows
    model = on_meta("squeezenet1_1", num_classes=10)
    assert row.params == sizes(model).params == 1_235_496 - 990 * 513
    assert (row.macs, row.input_size) == (macs(model, (3, 64, 64)), 64)
    assert lc.backbones("squeezenet1_1", input_size=8) == Catalogue((), ("squeezenet1_1",))


def test_another_timm_has_everything_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = lc.backbones("lcnet_035").rows
    counts = json.loads(COUNTS.read_text())
    counts["timm"] = "0.0"
    counts["networks"]["lcnet_035"]["macs"]["224"] = 1
    (tmp_path / "counts.json").write_text(json.dumps(counts))
    monkeypatch.setattr(listing, "COUNTS", tmp_path / "counts.json")
    stored_counts.cache_clear()
    try:
        assert lc.backbones("lcnet_035").rows == (before,)
    finally:
        stored_counts.cache_clear()


def test_a_network_that_cannot_be_counted_at_its_own_size_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "stored_counts", dict)
    monkeypatch.setattr(listing, "default_input_size", lambda name: 8)
    with pytest.raises(RuntimeError):
        lc.backbones("squeezenet1_1")


@same_timm
def test_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_GROUP_SIZE", 2)
    seen: list[tuple[int, bool, tuple[int, ...]]] = []
    create = timm.create_model

    def watched(name: str, **kwargs: object) -> torch.nn.Module:
        model = create(name, **kwargs)

        def look(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
            if not output.is_meta:
                seen.append((torch.get_num_threads(), module.training, tuple(output.shape)))

        model.register_forward_hook(look)
        return model

    monkeypatch.setattr(timm, "create_model", watched)
    torch.manual_seed(0)
    before, rng = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        found = lc.backbones("lcnet_0[357]*", input_size=32, num_classes=5, latency=True).rows
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [row.name for row in found] == ["lcnet_035", "lcnet_050", "lcnet_075"]
    assert all(row.latency > 0 for row in found)
    assert seen == [(1, False, (1, 5))] * 3 * (1 + latency._ROUNDS)
    assert torch.equal(torch.get_rng_state(), rng)


def test_networks_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once a round, the first round not timed, and of the rest the median."""
    calls: list[str] = []
    clock = iter(range(10_000))

    class Named(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert torch.is_inference_mode_enabled()
            assert x.shape == (1, 3, 4, 4) if self.name == "a" else (1, 3, 8, 8)
            calls.append(self.name)
            # The first round is slow, and three of the other seven.
            for _ in range(100 if len(calls) <= 2 else 50 * (len(calls) > 10)):
                next(clock)
            return x

    monkeypatch.setattr(latency.timm, "create_model", lambda name: Named(name))
    assert latency.latencies({"a": 4, "b": 8}, timer=lambda: next(clock)) == {"a": 1, "b": 1}
    rounds = [sorted(calls[i : i + 2]) for i in range(0, len(calls), 2)]
    assert rounds == [["a", "b"]] * (1 + latency._ROUNDS)
    assert len({tuple(calls[i : i + 2]) for i in range(0, len(calls), 2)}) == 2  # in either order


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"glob": "mobilnet*"}, "'mobilnet\\*' matches no backbone \\(did you mean 'mobilenet"),
        ({"glob": "resnet152"}, "the families are SqueezeNet, MobileNetV1"),
        ({"max_params": 0}, "max_params=0 must be more than 0"),
        ({"max_macs": -1.0}, "max_macs=-1.0"),
        ({"input_size": 0}, "input_size=0"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lc.backbones(**arguments)


ROWS = (
    Backbone("slow_and_small", "A", 1_234_567, 2_345_678_901, 4_938_268, 1_300_000, 224, False),
    Backbone("quick_and_large", "B", 7_000_000, 5_000_000, 28_000_000, 7_100_000, 32, True, 0.01234),
)


def test_catalogues_are_sorted_and_filtered() -> None:
    whole = Catalogue(ROWS, ("other",))
    assert whole.sort(lambda row: row.macs) == Catalogue(ROWS[::-1], ("other",))
    assert whole.filter(lambda row: row.params < 2e6) == Catalogue(ROWS[:1], ("other",))


def test_the_table() -> None:
    printed = str(Catalogue(ROWS, ("other",)))
    first, second = (line.split() for line in printed.splitlines() if "_and_" in line)
    assert first == ["slow_and_small", "1.23", "2,345.7", "4.9", "1.3", "224"]
    assert second == ["quick_and_large", "7.00", "5.0", "28.0", "7.1", "32", "12.3", "yes"]
    assert printed.endswith("Left out because they do not support this input size: other.")
    assert " ms" not in str(Catalogue(ROWS[:1]))
    assert str(Catalogue(())) == "No network is within these limits."


@same_timm
def test_eighty_columns_are_enough() -> None:
    from rich.console import Console

    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(lc.backbones())
    assert all(name in capture.get() for name in families_by_name())
