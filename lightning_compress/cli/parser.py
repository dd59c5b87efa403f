"""LightningCLI's parser, in one sentence."""

from __future__ import annotations

from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lightning_compress.cli.config_errors import ConfigError
from lightning_compress.cli.errors import fail


class OneSentenceParser(LightningArgumentParser):
    """Says in one sentence what is wrong with a configuration, and exits with 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exits, or raises in the parsers that jsonargparse makes on the way to try alternatives."""
        if not self.exit_on_error:
            super().error(message, ex)
        fail(ConfigError(message, self).sentence())
