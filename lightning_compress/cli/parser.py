"""LightningCLI's argument parser with one-line error messages."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_compress.cli.config_errors import ConfigErrorMessage
from lightning_compress.cli.errors import fail


class CompressionArgumentParser(LightningArgumentParser):
    """LightningArgumentParser that reports an invalid configuration in one line and exits with code 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would become another key as soon as a second one begins alike.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit; raise instead in the internal parsers with which jsonargparse tries alternatives."""
        if not self.exit_on_error:
            super().error(message, ex)
        fail(ConfigErrorMessage(message, self).summary())
