"""LightningCLI's argument parser, whose errors are exceptions."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.cli import LightningArgumentParser


class CompressionArgumentParser(LightningArgumentParser):
    """LightningArgumentParser that takes no abbreviations and raises ``argparse.ArgumentError``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would become another key as soon as a second one begins alike.
        super().__init__(*args, **{"allow_abbrev": False, "exit_on_error": False, **kwargs})
