"""Networks that a technique cannot carry further, each with the reason in one sentence."""

from __future__ import annotations

EXPLANATIONS: dict[str, str] = {}
