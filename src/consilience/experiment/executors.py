"""Places to run: a word to a ``concurrent.futures.Executor``. Nothing else in the package knows of them."""

import contextlib
import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from consilience.errors import SpecError, unknown

R = TypeVar("R")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h


class Inline(Executor):
    """Runs each job where it is submitted, at once."""

    workers = 1

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Run the job, and return it done."""
        job: Future[R] = Future()
        job.set_running_or_notify_cancel()
        try:
            job.set_result(fn(*args, **kwargs))
        except Exception as error:
            job.set_exception(error)
        return job


class Processes(ProcessPoolExecutor):
    """Spawned processes of one torch thread each; a fork after torch has run threads can hang."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        super().__init__(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_alone)

    def stop(self) -> None:
        """End all workers now, whatever they do."""
        for process in list((self._processes or {}).values()):
            process.kill()
        self.shutdown(wait=True, cancel_futures=True)


def _alone() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    keep_pages()
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def keep_pages() -> None:
    """Let this process keep the memory that it frees, where its C library is glibc; elsewhere nothing happens.

    Activations come and go with every chunk. Handed back to the system each time, their pages cost up to
    half of a run; kept, the process stays at its highest.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
            mallopt(option, value)


def _leave_with_parent() -> None:
    """A worker whose parent was killed would wait for its next job forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class RayExecutor(Executor):
    """Jobs as Ray tasks; ``ObjectRef.future()`` is a standard future."""

    def __init__(self, address: str) -> None:
        self.ray = _extra("ray", "ray")
        self.own = not self.ray.is_initialized()
        self.ray.init(address=address or None, ignore_reinit_error=True, log_to_driver=False)
        self.workers = int(self.ray.cluster_resources().get("CPU", 1))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, if it was not entered before; a local one ends, with whatever it still does."""
        if self.own:
            self.ray.shutdown()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Run the job somewhere in the cluster."""
        job: Future[R] = self.ray.remote(fn).remote(*args, **kwargs).future()
        return job


@contextlib.contextmanager
def executor(word: str) -> Iterator[Executor]:
    """``here``, ``processes:N``, ``dask:ADDRESS`` or ``ray:ADDRESS`` (no address: a new local cluster).

    Raises:
        SpecError: Another word, a number of workers below one, or an extra that is not installed.
    """
    kind, _, rest = word.partition(":")
    if kind == "here":
        yield Inline()
    elif kind == "processes":
        if not rest.isdecimal() or int(rest) < 1:
            raise SpecError(f"--on {word}: expected processes:N with N from 1 on, found '{rest}'; give a number")
        with Processes(int(rest)) as pool:
            yield pool
    elif kind == "dask":
        distributed = _extra("distributed", "dask")
        local = {"threads_per_worker": 1, "dashboard_address": None}
        client = distributed.Client(rest) if rest else distributed.Client(**local)
        with client, client.get_executor() as pool:
            pool.workers = len(client.nthreads())
            yield pool
    elif kind == "ray":
        with RayExecutor(rest) as pool:
            yield pool
    else:
        raise SpecError(f"--on {word}: {unknown('place to run', kind, ['here', 'processes', 'dask', 'ray'])}")


def _extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SpecError(
            f"--on {extra}: expected the package '{module}', found none; pip install consilience[{extra}]"
        ) from None
