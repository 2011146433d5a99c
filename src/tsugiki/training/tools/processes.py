"""The device, the processes and the threads of a run; the processes by accelerate.

`torchrun`, `accelerate launch` and `tsugiki train --processes` all start the same command several times, with
environment variables that tell each process its number. Only the main process writes to the run's folder, shows
progress and samples.

The gradients are summed in torch's default group, whose time limit (10 minutes with NCCL, 30 with gloo) ends a run in
which a process hangs. While the main process reads the data, loads the base, samples or writes, the others wait in a
second group, which has a limit of a day. A process that ends is noticed at once in both, because its connections close.
"""

import atexit
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from torch import distributed

from tsugiki.dtypes import ComputeDtype, preferred_compute_dtype
from tsugiki.errors import OtherProcessError, TsugikiError, error_text, summarise_list
from tsugiki.language import _, marked
from tsugiki.training.settings.config import DeviceName
from tsugiki.training.tools.memory import limit_heaps

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=1)
_SECONDS_UNTIL_SEEN = 90.0
"""How long a network file system may take to show a new file to other machines; NFS looks again after 60 s."""

_REQUIREMENTS = {
    "cuda": marked("a driver, and a build of torch for CUDA"),
    "mps": marked("a Mac with Apple silicon"),
    "xpu": marked("a driver, and a build of torch for XPU"),
}
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Environment variables that `accelerate launch` sets."""


def several_processes() -> bool:
    """Return whether this process is one of several, by the variable that launchers set."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start_accelerator(
    device: DeviceName = "auto", trackers: Sequence[str] = (), logging_folder: str | None = None
) -> Accelerator:
    """Return the accelerator of this process, connected with the other processes of the run if there are any.

    `auto` computes on the accelerator of this machine if it has one, otherwise on the processor. `trackers` are names
    of accelerate's, such as tensorboard, which write into `logging_folder`. On a processor, threads that are started
    later share their heaps (`limit_heaps`).
    """
    kind = device_type(device)
    if kind == "cpu":
        limit_heaps(torch.get_num_threads())
    if kind == "mps" and several_processes():
        raise TsugikiError(
            "several processes cannot share the GPU of a Mac: start one process, or use {flag:device cpu}"
        )
    _check_trackers(trackers)
    _check_engines()
    try:
        # On a processor, accelerate connects the processes only if it is told to use the processor.
        accelerator = Accelerator(cpu=kind == "cpu", log_with=list(trackers) or None, project_dir=logging_folder)
    except (ValueError, RuntimeError) as error:
        port = os.environ.get("MASTER_PORT")
        if "EADDRINUSE" in str(error):
            raise TsugikiError(
                "port {port} of this machine is in use: choose another one (torchrun --master-port, or MASTER_PORT)",
                port=port,
            ) from error
        raise TsugikiError("cannot start on {kind}: {error}", kind=kind, error=error_text(error)) from error
    # Threads of a connection that is still open while the interpreter ends can abort the process.
    atexit.unregister(_disconnect)
    atexit.register(_disconnect)
    return accelerator


def _disconnect() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def require_one_process(command: str) -> None:
    """Check that a command that consists of several runs was not started in several processes."""
    if several_processes():
        raise TsugikiError(
            "{command} runs in one process: start it without torchrun or accelerate launch", command=command
        )


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Call `action` on the main process only, and return its result on every process.

    If the main process fails, the others raise an `OtherProcessError`.
    """
    outcome: list[tuple[bool, T | None]] = [(False, None)]
    try:
        if accelerator.is_main_process:
            outcome = [(True, action())]
    except BaseException:
        with suppress(OtherProcessError), errors_of_others(accelerator):
            _broadcast(accelerator, outcome)
        raise
    with errors_of_others(accelerator):
        _broadcast(accelerator, outcome)
    succeeded, result = outcome[0]
    if not succeeded:
        raise OtherProcessError
    return result  # type: ignore[return-value]


def main_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Call `action` on the main process, and then on the others, which find the main process's results in the cache."""
    results: list[T] = []
    on_main(accelerator, lambda: results.append(action()))
    result = results[0] if results else action()
    _gathered(accelerator, None)  # the main process waits here, not in a sum of gradients
    return result


def check_agreement(accelerator: Accelerator, facts: Mapping[str, object]) -> None:
    """Check that `facts` are equal on all processes; their names are shown in the message.

    The main process raises the error, and the others an `OtherProcessError`.
    """
    everywhere = _gathered(accelerator, facts)
    first = everywhere[0]
    for number, others in enumerate(everywhere):
        different = [name for name in {**first, **others} if first.get(name) != others.get(name)]
        if different and not accelerator.is_main_process:
            raise OtherProcessError
        if different:
            raise TsugikiError(
                "process {number} differs from process 0 in {different}: start all processes with the same "
                "command, and give all machines the same files",
                number=number,
                different=summarise_list(different),
            )


def check_shared(accelerator: Accelerator, file: Path) -> None:
    """Check that all processes see a file as the main process has written it, at the same path.

    A network file system may show it to other machines some time later, so they look again for a while.
    """
    if accelerator.num_processes == 1:
        return
    content = on_main(accelerator, file.read_bytes)
    end = time.monotonic() + _SECONDS_UNTIL_SEEN
    seen = _content(file) == content
    while not seen and time.monotonic() < end:
        time.sleep(0.1)
        seen = _content(file) == content
    everywhere = _gathered(accelerator, seen)
    if all(everywhere):
        return
    if not accelerator.is_main_process:
        raise OtherProcessError
    raise TsugikiError(
        "process {number} does not find the {file} that process 0 has written: all processes need the same folder "
        "{flag:out}, under the same path, on a file system that their machines share",
        number=everywhere.index(False),
        file=file,
    )


def _content(file: Path) -> bytes | None:
    with suppress(OSError):
        return file.read_bytes()
    return None


@lru_cache(maxsize=1)
def _waiting_group(default: distributed.ProcessGroup) -> distributed.ProcessGroup:
    """Return the group in which processes wait for each other; all of them must call this together at first.

    The argument is torch's default group, because another one needs another waiting group.
    """
    group: distributed.ProcessGroup = distributed.new_group(timeout=_LONGEST_WAIT, backend="gloo")
    return group


def _broadcast(accelerator: Accelerator, values: list[Any]) -> None:
    if accelerator.num_processes > 1:
        distributed.broadcast_object_list(values, group=_waiting_group(distributed.group.WORLD))


def _gathered(accelerator: Accelerator, value: T) -> list[T]:
    """Return the values of all processes, in order; all must call this together."""
    if accelerator.num_processes == 1:
        return [value]
    values: list[Any] = [None] * accelerator.num_processes
    with errors_of_others(accelerator):
        distributed.all_gather_object(values, value, group=_waiting_group(distributed.group.WORLD))
    return values


@contextmanager
def errors_of_others(accelerator: Accelerator) -> Iterator[None]:
    """Turn errors of the connection to another process, which are caused by its end, into an `OtherProcessError`."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if accelerator.num_processes > 1 and lost:
            raise OtherProcessError from error
        raise


_IS_AVAILABLE: Mapping[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
    "xpu": torch.xpu.is_available,
    "cpu": lambda: True,
}


def has_device(kind: str) -> bool:
    """Return whether this machine has a device of this type, by torch's name."""
    return _IS_AVAILABLE[kind]()


def planned_compute_dtype(device: torch.device) -> ComputeDtype:
    """Return the dtype in which a device computes by default.

    An accelerator that this machine does not have is taken for one with bfloat16, as every newer one is.
    """
    return preferred_compute_dtype(device) if has_device(device.type) else "bf16"


def device_type(name: DeviceName) -> str:
    """Return the type of the device on which a run computes, by torch's name; this machine must have it."""
    if name == "auto":
        return next(filter(has_device, _IS_AVAILABLE))
    if not has_device(name):
        raise TsugikiError(
            "device {name}: torch finds none on this machine; it requires {requirements}",
            name=name,
            requirements=_(_REQUIREMENTS[name]),
        )
    return name


def _check_engines() -> None:
    used = [name for variable, name in _ENGINES.items() if os.environ.get(variable, "").lower() in ("1", "true")]
    if used:
        raise TsugikiError(
            "accelerate is configured for {used}, which the training loop of Tsugiki does not use: start without "
            "it, and with {flag:shard fsdp} if the base does not fit on one device",
            used=used[0],
        )


def _check_trackers(names: Sequence[str]) -> None:
    known = {str(kind) for kind in LoggerType.list()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise TsugikiError(
            "report_to: no tracker is called {unknown}; accelerate has {known}",
            unknown=", ".join(unknown),
            known=", ".join(sorted(known)),
        )
    missing = [name for name in names if name != "all" and name not in map(str, get_available_trackers())]
    if missing:
        raise TsugikiError(
            "report_to: {missing} is not installed (pip install {packages})",
            missing=", ".join(missing),
            packages=" ".join(missing),
        )


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `tsugiki ARGUMENTS` in several processes of this machine, and return its exit status.

    torch's launcher, which is also behind `torchrun`, connects the processes, watches them, and ends the others when
    one of them fails. A process that has an error prints it; the others end without a message.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # On a processor, threads of several processes would compete for the cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for name in ("", ".agent.server.api"):  # they would repeat errors, and name signals by numbers
        logging.getLogger(f"torch.distributed.elastic{name}").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="tsugiki",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # the system chooses a port that is free
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "tsugiki", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise TsugikiError(
                "process {rank} of the run was ended by {signal_name}, so the others were ended too: continue from "
                "the last checkpoint with {flag:resume}",
                rank=rank,
                signal_name=failure.signal_name(),
            ) from error
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0


def run_in_threads(tasks: Sequence[Callable[[], T]], threads_of_each: int | None = None) -> Iterator[T]:
    """Run the tasks in parallel and yield their results in order.

    If an operation uses several threads, they all wait for the slowest one. When another program uses one of the cores,
    small operations become many times slower for this reason. Independent tasks with one thread each do not wait for
    each other.

    At most as many tasks as torch has threads run at once. Tasks start only a little ahead of the results that have
    been taken, so that results do not pile up in memory. The operations of a task use `threads_of_each` of torch's
    threads. With a fixed number, no bit of a result depends on how many threads torch has. None: they are divided among
    the tasks.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(tasks)))
    share = threads_of_each or max(1, threads // workers)
    if workers == 1 and share == threads:
        yield from (task() for task in tasks)
        return
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    started: deque[Future[T]] = deque()
    try:
        with pool:
            for task in tasks:
                started.append(pool.submit(task))
                if len(started) > workers:
                    yield started.popleft().result()
            while started:
                yield started.popleft().result()
    finally:
        torch.set_num_threads(threads)  # some libraries count threads for the whole process
