"""Elastic workers: Hydra runs once per node, workers read the resolved YAML and never import Hydra."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cmma.errors import CmmaError

if TYPE_CHECKING:
    from cmma.config import LaunchConfig


def launch_workers(stage: str, resolved: Path, launch: LaunchConfig) -> None:
    """Run `python -m cmma.worker STAGE RESOLVED` in `launch.nproc` processes on this node and wait.

    Raises:
        CmmaError: a worker failed; the message is the worker's own line where it left one.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig as ElasticConfig
    from torch.distributed.launcher.api import elastic_launch

    # Else a restarted group meets the addresses of the one before in the agent's store (pytorch issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    elastic = ElasticConfig(
        min_nodes=launch.nodes, max_nodes=launch.nodes, nproc_per_node=launch.nproc,
        rdzv_backend="c10d", rdzv_endpoint=launch.rdzv_endpoint or "localhost:0",
        rdzv_configs={"is_host": True} if launch.nodes == 1 else {},
        run_id=f"{stage}-{resolved.parent.name}", max_restarts=launch.max_restarts, monitor_interval=0.2,
        local_addr="localhost" if launch.nodes == 1 else None,
    )
    try:
        elastic_launch(elastic, sys.executable)("-m", "cmma.worker", stage, str(resolved))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise CmmaError(
            f"{stage}: worker {rank} ended with status {failure.exitcode}; its message is above; run the same command "
            "again to go on from what is finished"
        ) from error
