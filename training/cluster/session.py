"""Ray: started on this machine or joined by its address. The only module that imports it.

Ray Data hands out the tasks to a pool of actors, restarts those that die, and gives their tasks to others. Results go
to the disk and not through Ray, whose object store stays small.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from dinov3_seg_ros.support.cpu import usable_cores
from dinov3_seg_ros.support.errors import ClusterError, RuntimeUnavailableError, SegmentationError
from dinov3_seg_ros.support.files import locked
from dinov3_seg_ros.support.installation import how_to_install

if TYPE_CHECKING:
    import types

#: The address for which Ray is started here.
THIS_MACHINE = "auto"
#: Cores of one process, where nobody says otherwise.
CORES_OF_A_PROCESS = 4
# From where the processes import this project.
_ROOT = Path(__file__).resolve().parents[2]
_SESSION_PREFIX = "dinov3-ray-"
# The least that Ray takes.
_OBJECT_STORE_BYTES = 100 << 20
# A socket's path has at most 107 bytes, and Ray adds up to 65.
_LONGEST_FOLDER = 40
_CONNECT_SECONDS = 10.0
#: So that an actor does not wait for its next task.
_TASKS_AT_ONCE = 2

Job = TypeVar("Job")


class Worker(Protocol):
    """What computes tasks in a process of the cluster."""

    def process(self, task: Any) -> Any:
        """Compute a task; both it and the result are of JSON types.

        Raises:
            SegmentationError: no process can do it; everything ends.
        """


@dataclass(frozen=True)
class Pool:
    """The processes of a job.

    Attributes:
        processes: their number.
        threads: of each, cores that are its own.
        gpus: of each, 0 or 1.
    """

    processes: int
    threads: int
    gpus: int


class Cluster:
    """A Ray cluster that this process has joined; see `open_cluster`."""

    def __init__(self, ray: types.ModuleType, is_own: bool) -> None:
        self._ray, self._is_own = ray, is_own

    def pool(self, processes: int | None, threads: int, may_use_gpus: bool) -> Pool:
        """The processes for a job.

        Args:
            processes: their number; None: as many as there are GPUs, or groups of cores.
            threads: cores of each; 0: its share of the cores of its GPU's machine, or `CORES_OF_A_PROCESS`.
            may_use_gpus: whether each gets a GPU, where there are any.

        Raises:
            ClusterError: the cluster has too little.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores = [int(node.get("CPU", 0)) for node in nodes]
        gpus = [int(node.get("GPU", 0)) for node in nodes] if may_use_gpus else [0 for _ in nodes]
        if self._is_own and processes is not None and not any(gpus):
            # Here Ray counts cores for nobody else: more processes than cores are the user's choice.
            return Pool(processes, threads or max(usable_cores() // processes, 1), 0)
        if any(gpus):
            share = min(own // count for own, count in zip(cores, gpus, strict=True) if count)
            threads = threads or max(share, 1)
            most = sum(min(count, own // threads) for own, count in zip(cores, gpus, strict=True))
        else:
            threads = threads or min(CORES_OF_A_PROCESS, max(cores, default=1))
            most = sum(own // threads for own in cores)
        wanted = processes or most
        if not 1 <= wanted <= most:
            each = f"{threads} cores{' and a GPU' if any(gpus) else ''}"
            raise ClusterError(
                f"the cluster has room for {most} processes with {each} each, not for {max(wanted, 1)}; lower "
                "--processes or --threads, or add machines"
            )
        return Pool(wanted, threads, 1 if any(gpus) else 0)

    def run(self, open_worker: Callable[[Job], Worker], job: Job, tasks: Sequence[Any], pool: Pool) -> Iterator[Any]:
        """Compute tasks; yields their results as they come, in any order.

        Args:
            open_worker: called in each process, once.
            job: its argument; is pickled.
            tasks: at least one, of JSON types, as are the results.
            pool: the processes.

        Raises:
            ClusterError: a worker cannot go on, or the cluster failed.
        """
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = ray.data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
        results = rows.map(
            cast(Any, _Actor),  # a class is taken, but not in Ray's annotations
            fn_constructor_args=(open_worker, job),
            compute=ray.data.ActorPoolStrategy(size=pool.processes, max_tasks_in_flight_per_actor=_TASKS_AT_ONCE),
            num_cpus=pool.threads,
            num_gpus=pool.gpus or None,
        )
        try:
            for row in results.iter_rows():
                if row["error"]:
                    raise ClusterError(f"a worker on {row['host']} cannot go on: {row['error']}")
                yield json.loads(row["result"])
        except (ray.exceptions.RayError, ConnectionError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ClusterError(f"the cluster failed: {lines[-1] if lines else type(error).__name__}") from error


class _Actor:
    """One process of the cluster. It opens its worker at the first task, in which an error can be told."""

    def __init__(self, open_worker: Callable[[Any], Worker], job: Any) -> None:
        self._open_worker, self._job = open_worker, job
        self._worker: Worker | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        told = {"result": "", "error": "", "host": os.uname().nodename}
        try:
            if self._worker is None:
                self._worker = self._open_worker(self._job)
            return {**told, "result": json.dumps(self._worker.process(json.loads(row["task"])))}
        except SegmentationError as error:
            return {**told, "error": f"{error}"}


@contextlib.contextmanager
def open_cluster(address: str, processes: int | None = None, threads: int = 0) -> Iterator[Cluster]:
    """Start Ray on this machine (address `THIS_MACHINE`), or join the cluster with an address; leave it at the end.

    Ray sends no statistics of its use, shows no dashboard, and leaves no files behind. A Ray that this process has
    started before is used and kept.

    Args:
        address: of the cluster.
        processes, threads: see `Cluster.pool`. On this machine there is room for as many as are wanted.

    Raises:
        RuntimeUnavailableError: Ray is not installed.
        ClusterError: it cannot be started or reached.
    """
    # Read when Ray is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeUnavailableError(f"{error.name} is not installed: {how_to_install('cluster')}") from error
    is_own = address == THIS_MACHINE
    if ray.is_initialized():
        yield Cluster(ray, is_own)
        return
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails raises an exception
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cores = max(usable_cores(), (processes or 1) * (threads or 1))
        where = _of_this_machine(stack, cores) if is_own else _at(address)
        own_handler = signal.getsignal(signal.SIGTERM)
        try:
            with _silent():
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            what = "started on this machine" if is_own else f"reached at {address}"
            raise ClusterError(f"Ray cannot be {what}: {error}") from error
        stack.callback(ray.shutdown)
        _end_on_sigterm(stack, own_handler)
        yield Cluster(ray, is_own)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what is written to standard error, also by C++: Ray tells how it logs. What fails raises an exception."""
    sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere:
        saved = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _set_variable(name: str, value: str | None) -> None:
    """Set a variable of the environment; None removes it."""
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def _end_on_sigterm(stack: contextlib.ExitStack, own_handler: Any) -> None:
    """Take SIGTERM, which schedulers send, for Ctrl-C until ``stack`` ends; Ray's own handler aborts the process.

    Then the handler that was there before Ray is set again.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGTERM, own_handler or signal.SIG_DFL)


def _at(address: str) -> dict[str, Any]:
    """How a cluster is joined; Ray itself tries for minutes before it says that nobody is there.

    Raises:
        ClusterError: the address is none, or nobody listens there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"'{address}' is no address of a Ray cluster; write auto, or HOST:PORT as 'ray start' says")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise ClusterError(
            f"no Ray cluster can be reached at {address} ({error}); start one with: ray start --head"
        ) from error
    return {"address": address}


def _of_this_machine(stack: contextlib.ExitStack, cores: int) -> dict[str, Any]:
    """How Ray is started here: with a folder and a secret of its own, which end with ``stack``."""
    folder = _session_folder(stack)
    # Ray passes on our working folder, but not what else is in sys.path.
    patch = {"PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))}
    if "RAY_AUTH_TOKEN" not in os.environ:  # else Ray would put a secret into the user's home
        patch["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in patch.items():
        stack.callback(_set_variable, name, os.environ.get(name))
        os.environ[name] = value
    return {
        "address": "local",
        "num_cpus": cores,
        "include_dashboard": False,
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": str(folder),
    }


def remove_dead_sessions() -> None:
    """Remove the folders that Ray left in the temporary folder when commands were killed."""
    for folder in _temporary_folder().glob(f"{_SESSION_PREFIX}*"):
        with contextlib.suppress(OSError), locked(folder, wait=False):  # its owner has ended
            shutil.rmtree(folder, ignore_errors=True)


def _session_folder(stack: contextlib.ExitStack) -> Path:
    """A folder for Ray's sockets and logs, which ends with ``stack``."""
    remove_dead_sessions()
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SESSION_PREFIX, dir=_temporary_folder()))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(locked(folder))
        if folder.is_dir():
            return folder
        # Before it was locked, a command that starts at the same moment took it for a dead one's.


def _temporary_folder() -> Path:
    folder = Path(tempfile.gettempdir())
    is_long = len(os.fsencode(folder)) + len(_SESSION_PREFIX) + 8 > _LONGEST_FOLDER
    return Path("/tmp") if is_long else folder
