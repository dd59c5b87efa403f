"""Dispatch of ``lightning-compress COMMAND ...``, one function per command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lightning_compress.cli.errors import did_you_mean, fail
from lightning_compress.cli.options import check_options_once


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        argv: Name of the command and its arguments; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: With code 2 for wrong usage or an invalid configuration, after a one-line message.
    """
    command, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    # Recipes may refer to classes in modules of the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if command in ("-h", "--help", "help"):
        _print_help()
    elif command in ("-V", "--version", "version"):
        print(f"lightning-compress {_version()}")
    elif command in COMMANDS:
        COMMANDS[command][1](arguments)
    else:
        fail(f"Unknown command {command!r}{did_you_mean(command, COMMANDS)}: choose one of {', '.join(COMMANDS)}.")


def _print_help() -> None:
    width = max(map(len, COMMANDS))
    print("usage: lightning-compress COMMAND ...\n")
    for name, (summary, _) in COMMANDS.items():
        print(f"  {name:<{width}}  {summary}")
    print("\n'lightning-compress COMMAND --help' lists the options of a command.")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lightning-compress")
    except PackageNotFoundError:
        return "(not installed)"


def _begin(command: str, arguments: Sequence[str]) -> None:
    """Print the first words at once, and check the options: importing PyTorch and Lightning takes seconds."""
    _say_loading(command, arguments)
    check_options_once(arguments)


def _say_loading(command: str, arguments: Sequence[str]) -> None:
    if not any(argument in ("-h", "--help") or argument.startswith("--print_config") for argument in arguments):
        subject = next((argument for argument in arguments if not argument.startswith("-")), "")
        print(f"lightning-compress {command} {subject}".rstrip() + ": loading PyTorch", file=sys.stderr, flush=True)


def _run(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print(_RUN_HELP)
        return
    if not arguments or arguments[0].startswith("-"):
        fail("run requires a recipe: lightning-compress run RECIPE [--key=value ...]; 'recipes' lists all recipes.")
    _begin("run", arguments)
    # W&B's own summary of every metric would bury the report, which has the command that uploads the run.
    os.environ.setdefault("WANDB_SILENT", "true")
    from lightning_compress.cli.run import run

    run(arguments)


def _lightning(subcommand: str) -> Callable[[Sequence[str]], None]:
    def command(arguments: Sequence[str]) -> None:
        _begin(subcommand, arguments)
        from lightning_compress.cli.compression import CompressionCLI

        CompressionCLI(args=[subcommand, *arguments])

    return command


def _sensitivity(arguments: Sequence[str]) -> None:
    _begin("sensitivity", arguments)
    from lightning_compress.cli.sensitivity_command import sensitivity

    sensitivity(arguments)


def _doctor(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: lightning-compress doctor RECIPE [--key=value ...]\n\nCheck a recipe in a few batches.")
        return
    if not arguments or arguments[0].startswith("-"):
        fail("doctor requires a recipe: lightning-compress doctor RECIPE [--key=value ...].")
    _begin("doctor", arguments)
    from lightning_compress.cli.doctor_command import doctor

    doctor(arguments)


def _export(arguments: Sequence[str]) -> None:
    _say_loading("export", arguments)
    from lightning_compress.cli.export_command import export

    export(arguments)


def _report(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.report_command import report

    report(arguments)


def _compare(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.compare_command import compare

    compare(arguments)


def _verify(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.verify_command import verify

    verify(arguments)


def _backbones(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.backbones import backbones

    backbones(arguments)


def _convert(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.convert_command import convert

    convert(arguments)


def _recipes(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.recipes import recipes

    recipes(arguments)


_RUN_HELP = """\
usage: lightning-compress run RECIPE [--key=value ...]

Fit, test, compress, export and report. RECIPE is a YAML file or the name of a shipped one ('recipes' lists them).

  --pruning.sparsity=0.9          keys of the techniques: pruning, clustering, quantization, monitor
  --quantization.weights.bits=4
  --model.teacher=FILE.ckpt       keys of the model, the data and the Trainer
  --data.batch_size=64
  --trainer.max_epochs=20
  --baseline=fit|test|skip        train the same configuration without techniques, test the initial model, or neither
  --teacher=RECIPE                train the teacher of a DistillationModule first
  --after=RECIPE|DIRECTORY        continue with the network of another recipe or of a finished run
  --ckpt_path=FILE                resume
  --config=FILE                   add a file with further keys

'lightning-compress fit --help' lists all keys, 'lightning-compress doctor RECIPE' checks a recipe first."""


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "run": ("RECIPE [--key=value ...]: fit, test, compress, export and report", _run),
    "doctor": ("RECIPE [--key=value ...]: check a recipe in a few batches", _doctor),
    "report": ("RUN: print the report of a finished run, and write its HTML again", _report),
    "compare": ("RUN...: compare finished runs by accuracy, size and latency", _compare),
    "export": (
        "RUN [--formats=packed,onnx,half,openvino,coreml,litert,executorch,program]: write the network of a run",
        _export,
    ),
    "verify": ("RUN or FILE: recompute from the files what a report says of them", _verify),
    "fit": ("--config=FILE [--key=value ...]: train and validate", _lightning("fit")),
    "validate": ("--config=FILE --ckpt_path=FILE: evaluate on the validation data", _lightning("validate")),
    "test": ("--config=FILE --ckpt_path=FILE: evaluate on the test data", _lightning("test")),
    "predict": ("--config=FILE --ckpt_path=FILE: predict", _lightning("predict")),
    "sensitivity": ("--config=FILE [--mean_bits=4]: measure the quantization sensitivity of every layer", _sensitivity),
    "convert": ("RECIPE [DEST]: convert a SparseML recipe", _convert),
    "backbones": ("[GLOB] [--max-macs=300M]: list compact timm networks with their size and cost", _backbones),
    "recipes": ("list | show NAME | copy NAME [DEST]: the recipes", _recipes),
}
