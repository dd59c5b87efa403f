"""Processes that stay, so that each test does not pay for starting them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import socket
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

TIMEOUT = 120.0  # seconds; much longer than any job takes


class Pool:
    """Calls a function in every process of a group at once.

    The processes look to Lightning as if a launcher had started them, and keep their process group from call to call.
    """

    def __init__(self, num_ranks: int = 2) -> None:
        self.num_ranks = num_ranks
        self._ranks: list[tuple[BaseProcess, Connection]] = []
        self._crashes = tempfile.TemporaryDirectory()

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The results of all ranks.

        Raises:
            RuntimeError: With the traceback of the rank that failed first, or the stack of one that crashed; the
                processes are then ended.
        """
        self._ranks = self._ranks or _start(self.num_ranks, Path(self._crashes.name))
        try:
            return self._answers(function, args)
        except BaseException:  # an interrupt, too, leaves ranks that wait for each other
            self.close()
            raise

    def _answers(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        for _, connection in self._ranks:
            connection.send_bytes(pickle.dumps((function, args)))
        answers = {connection: None for _, connection in self._ranks}
        waiting = list(answers)
        while waiting:
            ready = wait(waiting, TIMEOUT)
            if not ready:
                raise RuntimeError("no answer")
            for connection in ready:
                waiting.remove(connection)
                try:
                    failure, answers[connection] = pickle.loads(connection.recv_bytes())
                except EOFError:
                    raise RuntimeError(self._crash(connection)) from None
                if failure:
                    raise RuntimeError(failure)
        return list(answers.values())

    def _crash(self, connection: Connection) -> str:
        rank = [theirs for _, theirs in self._ranks].index(connection)
        process, _ = self._ranks[rank]
        process.join(TIMEOUT)
        stacks = _stacks(Path(self._crashes.name), rank).read_text()
        return f"rank {rank} ended with exit code {process.exitcode}\n{stacks}"

    def close(self) -> None:
        """Ends the processes; the next call starts new ones."""
        for process, _ in self._ranks:
            process.kill()
            process.join()
        self._ranks = []


def _stacks(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.txt"


def _start(num_ranks: int, crashes: Path) -> list[tuple[BaseProcess, Connection]]:
    # A server that has nothing but imports behind it forks all: they take seconds, and need not be done twice.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.jobs"])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    ranks = []
    for rank in range(num_ranks):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(rank, num_ranks, port, theirs, crashes), daemon=True)
        process.start()
        ranks.append((process, ours))
    return ranks


def _serve(rank: int, num_ranks: int, port: int, connection: Connection, crashes: Path) -> None:
    stacks = _stacks(crashes, rank).open("w")
    faulthandler.enable(stacks)
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0}
    launched |= {"NUM_RANKS": num_ranks}
    os.environ.update({name: str(value) for name, value in launched.items()})
    while True:
        try:
            function, args = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = "", function(*args)
        except Exception:
            answer = f"on rank {rank}:\n{traceback.format_exc()}", None
        _destroy_subgroups()
        connection.send_bytes(pickle.dumps(answer))


def _destroy_subgroups() -> None:
    """Destroys the groups of the meshes that a Trainer made, whose threads and sockets stay open otherwise."""
    for group in [*dist.distributed_c10d._world.pg_map]:
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
