"""Start a command in several processes of this machine, as `tsugiki train --processes` does.

torch's launcher, which is also behind `torchrun`, connects the processes, watches them, and ends the others when one of
them fails.
"""

import logging
import os
import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tsugiki.errors import TsugikiError
from tsugiki.language import _


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `tsugiki ARGUMENTS` in several processes, and return its exit status.

    A process that has an error prints it; the others end without a message.

    Raises:
        TsugikiError: a process was ended by a signal.
    """
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
                _(
                    "process {rank} of the run was ended by {signal_name}, so the others were ended too: continue from "
                    "the last checkpoint with --resume"
                ).format(rank=rank, signal_name=failure.signal_name())
            ) from error
        return failure.exitcode
    except SignalException as error:
        return 128 + error.sigval.value
    return 0
