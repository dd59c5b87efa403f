"""Files that are damaged in any way give the right content or a ``ValueError``, in bounded time and memory.

The default suite reads a few of each kind. All of them, with the counts printed::

    python -m pytest tests/hostile -m slow -s -n 0
"""

from __future__ import annotations

import copy
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lightning_compress as lc
from lightning_compress.distillation.cached_rows import _row
from lightning_compress.distillation.logit_cache import LogitCache
from tests.channels.nets import Residual
from tests.channels.test_removal_log import shrunk
from tests.hostile.damage import Outcomes, edited, flipped, spliced
from tests.packing.hostile import as_version_2, closed, mutated, opened
from tests.packing.samples import bits, state

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")

Damage = Callable[[bytes, random.Random], bytes]
SAMPLES = torch.randn(12, 3, 4, 4, generator=torch.Generator().manual_seed(0))
KEYS = torch.arange(12)


def few_or_all(number: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("number", [60, pytest.param(number, marks=pytest.mark.slow)])


def edited_index(data: bytes, rng: random.Random) -> bytes:
    """A packed file with another header or index, under the old checksum of the index."""
    header, index, payload = opened(as_version_2(data))
    if rng.random() < 0.2:
        text = json.dumps(edited(header, rng)).encode()
        return len(text).to_bytes(8, "little") + text + payload
    old = header["__metadata__"]["crc32"]
    changed = closed(header, edited(index, rng), payload)
    return changed.replace(header["__metadata__"]["crc32"].encode(), old.encode())


@pytest.mark.parametrize("damage", [flipped, spliced, edited_index])
@few_or_all(6_667)
def test_packed_files(damage: Damage, number: int, tmp_path: Path) -> None:
    sound = lc.save_packed(state(), tmp_path / "sound").path.read_bytes()
    expected, outcomes = {name: bits(tensor) for name, tensor in state().items()}, Outcomes()

    def read() -> bool:
        found = lc.load_packed(tmp_path / "file")
        return list(found) == list(expected) and {name: bits(t) for name, t in found.items()} == expected

    (tmp_path / "file").write_bytes(sound)
    assert read()
    for seed in range(number):
        (tmp_path / "file").write_bytes(damage(sound, random.Random(seed)))
        outcomes.read(seed, read, ValueError)
    print(f"\npacked files, {damage.__name__}: {outcomes}")


@few_or_all(2_000)
def test_malicious_packed_files(number: int, tmp_path: Path) -> None:
    """With checksums of the index that fit, so that everything behind them is reached; only the cost is bounded."""
    sound, outcomes = lc.save_packed(state(), tmp_path / "sound").path.read_bytes(), Outcomes()
    for seed in range(number):
        (tmp_path / "file").write_bytes(mutated(sound, random.Random(seed)))
        outcomes.read(seed, lambda: bool(lc.load_packed(tmp_path / "file")) or True, ValueError)
    print(f"\nmalicious packed files: {outcomes}")


def edited_log(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(edited(json.loads(data), rng)).encode()


@pytest.mark.parametrize("damage", [flipped, spliced, edited_log])
@few_or_all(667)
def test_removal_logs(damage: Damage, number: int, tmp_path: Path) -> None:
    _, log = shrunk()
    log.save(tmp_path / "sound")
    sound, outcomes, fresh = (tmp_path / "sound").read_bytes(), Outcomes(), Residual()

    def read() -> bool:
        found = lc.RemovalLog.load(tmp_path / "file")
        found.replay_(copy.deepcopy(fresh))
        return found == log

    (tmp_path / "file").write_bytes(sound)
    assert read()
    for seed in range(number):
        (tmp_path / "file").write_bytes(damage(sound, random.Random(seed)))
        outcomes.read(seed, read, ValueError)
    print(f"\nremoval logs, {damage.__name__}: {outcomes}")


def teacher(inputs: Tensor) -> Tensor:
    return inputs.flatten(1)[:, :5] * 3


def edited_rows(data: bytes, rng: random.Random) -> bytes:
    """A cache with one field of a row replaced, by an odd value or by that of another row."""
    rows = np.frombuffer(data, _row(5, has_checksum=True)).copy()
    row, other = rng.randrange(len(rows)), rng.randrange(len(rows))
    field = rng.choice(["signature", "logits", "crc32", "complete", ""])
    if not field:
        rows[[row, other]] = rows[[other, row]]
    elif rng.random() < 0.5:
        rows[field][row] = rows[field][other]
    elif field in ("crc32", "complete"):
        rows[field][row] = rng.choice([0, 1, 2, 255])
    else:
        rows[field][row, rng.randrange(5)] = rng.choice([0.0, float("nan"), 1e30, -1.0])
    return rows.tobytes()


@pytest.mark.parametrize("damage", [flipped, spliced, edited_rows])
@few_or_all(667)
@pytest.mark.filterwarnings("ignore:.*damaged rows")
def test_logit_caches(damage: Damage, number: int, tmp_path: Path) -> None:
    LogitCache(tmp_path / "sound").logits(KEYS, SAMPLES, teacher)
    (file,) = (tmp_path / "sound").iterdir()
    # The rest of the file is zeros, in which damage would hardly ever hit a row.
    sound, outcomes = file.read_bytes()[: len(KEYS) * _row(5, has_checksum=True).itemsize], Outcomes()
    folder = tmp_path / "cache"
    folder.mkdir()
    for seed in range(number):
        (folder / file.name).write_bytes(damage(sound, random.Random(seed)))
        outcomes.read(
            seed, lambda: torch.equal(LogitCache(folder).logits(KEYS, SAMPLES, teacher), teacher(SAMPLES)), ValueError
        )
    print(f"\nlogit caches, {damage.__name__}: {outcomes}")
