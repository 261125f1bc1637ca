"""Jobs on all cores: processes with one torch thread each, that end with their parent."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

import torch

CHILD = "FANIN_RACE_WORKER"
"""Set while workers are spawned, so that a script without a ``__main__`` guard does not start a race in each."""

Job = Callable[[Any], Any]
Results = Generator[tuple[int, Any], None, None]


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in a job, in words that survive the way between processes."""

    error: str
    trace: str


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def perform(job: Job, arguments: Sequence[Any], workers: int) -> tuple[Results, str]:
    """Run a function on every argument, in processes where there can be any.

    Args:
        job: called with one argument; what it returns must be picklable.
        arguments: handed out in order.
        workers: how many processes; 1 runs everything here.

    Returns:
        An iterator of (index, result or `Failure`) in the order of completion, and a note where processes were wanted
        and cannot be had. Closing the iterator ends the processes.
    """
    workers = min(workers, len(arguments))
    if workers <= 1:
        return _here(job, arguments), ""
    context, why_not = _context(job)
    if context is None:
        return _here(job, arguments), f"ran in one process: {why_not}"
    return _in_processes(job, arguments, workers, context), ""


def _context(job: Job) -> tuple[BaseContext | None, str]:
    if multiprocessing.current_process().daemon:
        return None, "the caller is a worker process itself"
    if _forks():
        return multiprocessing.get_context("fork"), ""
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        why = f"processes cannot be forked here, and build, data, loss or optimizer cannot be pickled ({error})"
        return None, f"{why}; define them at the top of a module"
    return multiprocessing.get_context("spawn"), ""


def _forks() -> bool:
    """Whether a forked process could train: autograd's threads for accelerators do not survive a fork."""
    if sys.platform != "linux":
        return False
    with _quiet_start("fork"):
        probe = multiprocessing.get_context("fork").Process(target=_try_backward, daemon=True)
        probe.start()
    probe.join()
    return probe.exitcode == 0


def _try_backward() -> None:
    try:
        torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
    except RuntimeError:
        os._exit(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread: what a run computes then does not depend on how many run beside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _here(job: Job, arguments: Sequence[Any]) -> Results:
    for index, argument in enumerate(arguments):
        with one_thread():
            result = _attempt(job, argument)
        yield index, result


def _attempt(job: Job, argument: Any) -> Any:
    try:
        return job(argument)
    except Exception as error:
        return Failure(f"{type(error).__name__}: {error}", traceback.format_exc())


def _in_processes(job: Job, arguments: Sequence[Any], workers: int, context: BaseContext) -> Results:
    processes: dict[Connection, Any] = {}
    running: dict[Connection, int] = {}
    waiting = iter(enumerate(arguments))
    try:
        with _quiet_start(context.get_start_method()):
            for _ in range(workers):
                ours, theirs = context.Pipe()
                process = context.Process(  # type: ignore[attr-defined]
                    target=_serve, args=(job, theirs, _inherited([*processes, ours], context)), daemon=True
                )
                process.start()
                theirs.close()
                processes[ours] = process
        for connection in processes:
            _hand_out(connection, waiting, running)
        while running:
            for ready in wait(list(running)):
                connection = next(known for known in running if known is ready)
                index = running.pop(connection)
                yield index, _receive(connection, processes[connection])
                if processes[connection].is_alive():
                    _hand_out(connection, waiting, running)
    finally:
        for connection, process in processes.items():
            process.terminate()
            process.join()
            connection.close()


def _inherited(connections: list[Connection], context: BaseContext) -> list[Connection]:
    """The parent's ends that a forked worker holds too: left open, it would not notice that the parent has gone."""
    return list(connections) if context.get_start_method() == "fork" else []


@contextmanager
def _quiet_start(method: str) -> Iterator[None]:
    if method == "fork":
        with warnings.catch_warnings():
            # Newer Pythons warn of forking beside threads. Torch's own threads are idle here, and the workers use none.
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            yield
        return
    os.environ[CHILD] = "1"
    try:
        yield
    finally:
        del os.environ[CHILD]


def _hand_out(connection: Connection, waiting: Iterator[tuple[int, Any]], running: dict[Connection, int]) -> None:
    following = next(waiting, None)
    if following is not None:
        index, argument = following
        connection.send(argument)
        running[connection] = index


def _receive(connection: Connection, process: Any) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        process.join()
        return Failure(f"the worker process ended with exit code {process.exitcode}", "")


def _serve(job: Job, connection: Connection, inherited: list[Connection]) -> None:
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            connection.send(_attempt(job, connection.recv()))
