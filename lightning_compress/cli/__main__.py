"""Entry point of ``python -m lightning_compress.cli``."""

from lightning_compress.cli.command import main

if __name__ == "__main__":
    main()
