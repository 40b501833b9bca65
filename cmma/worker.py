"""One elastic worker: `python -m cmma.worker STAGE RESOLVED.yaml`, started by `cmma.launch`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cmma.config import load_config
from cmma.errors import CmmaError


def main(stage: str, resolved: Path) -> None:
    """Join the process group, do this rank's share of the stage, leave."""
    import torch
    import torch.distributed as dist

    from cmma.artifacts.store import Artifact
    from cmma.stages.runner import Stage, execute, open_parents, outputs_folder, resolve_device

    config = load_config(resolved)
    device = resolve_device(config)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    root = outputs_folder(config)
    keys, parents = open_parents(stage, config, root)
    artifact = Artifact(root, stage, keys.key(stage))
    if artifact.finished:  # the group was started again after its last step
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        execute(Stage(stage, config, artifact, parents, dist.get_rank(), dist.get_world_size(), device), keys)
        dist.barrier()
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except CmmaError as error:
        print(f"cmma: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
