"""Processes that stay, so that each test does not pay for starting them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

TIMEOUT = 120.0  # seconds; much longer than any job takes


class Pool:
    """Calls a function in every process of a group at once.

    The processes look to Lightning as if a launcher had started them, and keep their process group from call to call.
    """

    def __init__(self, num_ranks: int = 2) -> None:
        self.num_ranks = num_ranks
        self._ranks: list[tuple[BaseProcess, Connection]] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """The results of all ranks.

        Raises:
            RuntimeError: With the traceback of the rank that failed first; the processes are then ended.
        """
        self._ranks = self._ranks or _start(self.num_ranks)
        for _, connection in self._ranks:
            connection.send_bytes(pickle.dumps((function, args)))
        answers = {connection: None for _, connection in self._ranks}
        waiting = list(answers)
        while waiting:
            ready = wait(waiting, TIMEOUT)
            if not ready:
                self.close()
                raise RuntimeError("no answer")
            for connection in ready:
                waiting.remove(connection)
                failure, answers[connection] = pickle.loads(connection.recv_bytes())
                if failure:
                    self.close()  # the others may wait for this rank for ever
                    raise RuntimeError(failure)
        return list(answers.values())

    def close(self) -> None:
        """Ends the processes; the next call starts new ones."""
        for process, _ in self._ranks:
            process.kill()
            process.join()
        self._ranks = []


def _start(num_ranks: int) -> list[tuple[BaseProcess, Connection]]:
    # A server that has nothing but imports behind it forks all: they take seconds, and need not be done twice.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.jobs"])
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    ranks = []
    for rank in range(num_ranks):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(rank, num_ranks, port, theirs), daemon=True)
        process.start()
        ranks.append((process, ours))
    return ranks


def _serve(rank: int, num_ranks: int, port: int, connection: Connection) -> None:
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
        connection.send_bytes(pickle.dumps(answer))
