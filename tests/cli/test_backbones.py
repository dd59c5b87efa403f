"""The command ``backbones``."""

from __future__ import annotations

import pytest

import lightning_compress as lc
from lightning_compress.cli import backbones, main


@pytest.fixture
def catalogue_calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Arguments of the calls of the catalogue, which returns two rows."""
    calls: list[dict[str, object]] = []
    answer = lc.Catalogue(lc.backbones("lcnet_0[35]*").rows[::-1])

    def catalogue(glob: str, **kwargs: object) -> lc.Catalogue:
        calls.append({"glob": glob, **kwargs})
        return answer

    monkeypatch.setattr(backbones, "catalogue", catalogue)
    return calls


def listed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split()[0] for line in capsys.readouterr().out.splitlines() if "net" in line and "_" in line]


NOTHING = {"max_params": None, "max_macs": None, "input_size": None, "num_classes": None, "latency": False}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"glob": "*"}),
        (["lcnet*"], {"glob": "lcnet*"}),
        (["--max-params", "3M"], {"max_params": 3e6}),
        (["--max_params=2.5m", "x"], {"max_params": 2.5e6, "glob": "x"}),
        (["--max-macs=1.5G"], {"max_macs": 1.5e9}),
        (["--max_macs=500k"], {"max_macs": 5e5}),
        (["--max-macs=300000000"], {"max_macs": 3e8}),
        (["--input-size=32", "--num-classes", "10"], {"input_size": 32, "num_classes": 10}),
        (["--input_size=32", "--num_classes=10"], {"input_size": 32, "num_classes": 10}),
        (["--latency"], {"latency": True}),
    ],
)
def test_arguments_of_the_catalogue(
    arguments: list[str], expected: dict[str, object], catalogue_calls: list[dict[str, object]]
) -> None:
    main(["backbones", *arguments])
    assert catalogue_calls == [{"glob": "*", **NOTHING, **expected}]


@pytest.mark.usefixtures("catalogue_calls")
def test_order(capsys: pytest.CaptureFixture[str]) -> None:
    main(["backbones"])
    assert listed(capsys) == ["lcnet_050", "lcnet_035"]
    for column in ("params", "macs"):
        main(["backbones", f"--sort={column}"])
        assert listed(capsys) == ["lcnet_035", "lcnet_050"]


def test_a_whole_command(capsys: pytest.CaptureFixture[str]) -> None:
    main(["backbones", "lcnet_0*", "--max-params=2M", "--input-size=32", "--latency", "--sort=latency"])
    assert sorted(listed(capsys)) == ["lcnet_035", "lcnet_050"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["backbones", "--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("GLOB", "--max-params", "--max-macs", "--latency", "such as 3M"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-params=lots"], "--max-params: lots must be a number, such as 500k, 3M or 1.5G."),
        (["--max-macs=M"], "M must be a number"),
        (["--max-macs=-3M"], "max_macs=-3000000.0 must be more than 0."),
        (["--max-macs="], "must be a number"),
        (["--max-parms=3M"], "Unknown option --max-parms (did you mean '--max-params'?)"),
        (["a", "b"], "Unexpected argument 'b': backbones takes one GLOB"),
        (["--sort=name"], "'params', 'macs', 'latency'"),
        (["--sort=latency"], "--sort=latency requires --latency"),
        (["--input-size=big"], "--input-size: invalid int value: 'big'."),
        (["--input-size"], "expected one argument."),
        (["mobilnetv3*"], "matches no backbone (did you mean 'mobilenetv3'?)"),
        (["--max=3M"], "Unknown option --max"),
    ],
)
def test_error_messages(error_message, arguments: list[str], words: str) -> None:
    assert words in error_message("backbones", *arguments)
