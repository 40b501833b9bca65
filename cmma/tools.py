"""Tools around the pipeline: ls, show, verify, doctor. None of them imports torch unless it must."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from cmma.artifacts.keys import expand
from cmma.artifacts.store import Artifact, find_artifact, list_artifacts
from cmma.artifacts.verify import verify
from cmma.console import format_value, say
from cmma.errors import ArtifactError, CmmaError
from cmma.stages.table import STAGES

_PACKAGES = (
    "torch", "torchvision", "transformers", "open_clip_torch", "diffusers", "hydra-core", "webdataset", "wandb",
)
# Columns of `cmma ls STAGE`: entries of the summary, in this order, under these headings.
COLUMNS = {
    "prepare-data": {"samples": "samples", "skipped": "skipped"},
    "cache-activations": {"samples": "samples", "visual": "visual", "textual": "textual", "layers": "layers"},
    "train-sae": {
        "arch": "arch", "layer": "layer", "n_latents": "latents", "seed": "seed", "fvu": "FVU",
        "l0_visual": "L0 visual", "l0_textual": "L0 textual", "dead_fraction": "dead",
    },
    "interpret": {"samples": "samples", "live": "live", "shares": "class shares in percent"},
    "trace": {"method": "method", "n_used": "images", "total_effect": "total effect", "strongest": "strongest cell"},
    "intervene": {"kind": "kind", "readout": "readout", "shift": "shift", "d": "d"},
    "mitigate": {"selection": "selection", "strength": "strength", "object_change": "change of object rate in percent"},
    "build-cmig": {"features": "features", "samples": "samples", "pairs": "pairs", "significant_excess": "significant"},
    "evaluate-sae": {
        "arch": "arch", "layer": "layer", "n_records": "records", "fvu": "FVU", "dead_fraction": "dead",
        "modality_share": "shared", "code_cosine": "code cosine", "recovered": "recovered",
    },
    "evaluate": {"samples": "samples"},
}


def run_tool(name: str, arguments: list[str]) -> int:
    """Run one tool and return its exit status."""
    parser = argparse.ArgumentParser(prog=f"cmma {name}")
    parser.add_argument("--outputs", default=os.environ.get("CMMA_OUTPUTS", "outputs"), help="outputs folder")
    if name == "ls":
        parser.add_argument("stage", nargs="?", choices=list(STAGES), help="only this stage")
    elif name == "show":
        parser.add_argument("key", help="key, or its first digits")
    elif name == "verify":
        parser.add_argument("key", nargs="?", help="only this artifact")
    options = parser.parse_args(arguments)
    root = expand(options.outputs)
    try:
        if name == "ls":
            return _ls(root, options.stage)
        if name == "show":
            return _show(find_artifact(root, options.key))
        if name == "verify":
            return _verify([find_artifact(root, options.key)] if options.key else list_artifacts(root))
        return _doctor(root)
    except CmmaError as error:
        print(f"cmma: {error}", file=sys.stderr)
        return error.exit_code


def _ls(root: Path, stage: str | None) -> int:
    artifacts = list_artifacts(root, stage)
    if not artifacts:
        say(f"no artifacts below {root}; `cmma run` makes them")
        return 0
    for name in dict.fromkeys(artifact.stage for artifact in artifacts):
        columns = COLUMNS.get(name, {})
        table = Table(title=name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for heading in ("key", "state", *columns.values()):
            table.add_column(heading, no_wrap=True)
        for artifact in (entry for entry in artifacts if entry.stage == name):
            summary = artifact.summary if artifact.finished else {}
            cells = [format_value(summary[entry]) if entry in summary else "" for entry in columns]
            state = "finished" if artifact.finished else f"unfinished, {len(artifact.sidecars())} shards"
            table.add_row(artifact.key, state, *cells)
        # A pipe gets the table whole: a narrow terminal may cut it, a script must not lose a column.
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def _show(artifact: Artifact) -> int:
    say(f"{artifact.stage} {artifact.key}: {artifact.folder}")
    if not artifact.finished:
        say(f"unfinished, {len(artifact.sidecars())} shards; run the same command again to go on")
        return 0
    manifest = artifact.manifest
    say(f"made in {manifest['seconds']} s on {manifest['device']} with "
        + ", ".join(f"{name} {number}" for name, number in manifest["software"].items()))
    for parent, key in manifest["parents"].items():
        say(f"from {parent} {key}")
    for name, value in manifest["summary"].items():
        say(f"  {name}: {format_value(value)}")
    say(f"configuration: {artifact.path('resolved.yaml')}")
    return 0


def _verify(artifacts: list[Artifact]) -> int:
    problems = [line for artifact in artifacts for line in verify(artifact)]
    for line in problems:
        say(line)
    files = sum(len(artifact.manifest["files"]) for artifact in artifacts if artifact.finished and not problems)
    if problems:
        say(f"{len(problems)} damaged; remove the artifact's folder and run its stage again")
        return ArtifactError.exit_code
    say(f"{len(artifacts)} artifacts whole ({files} files)")
    return 0


def _doctor(root: Path) -> int:
    """Facts that a bug report needs, and whether the machine can work at all."""
    say(f"python {sys.version.split()[0]}, {os.cpu_count()} cores")
    ready = True
    for package in _PACKAGES:
        try:
            say(f"{package} {version(package)}")
        except PackageNotFoundError:
            ready = False
            say(f"{package} is missing; install cmma again")
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    say(f"GPUs: {', '.join(gpus) or 'none; everything runs on the CPU'}")
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    writable = os.access(existing, os.W_OK)
    say(f"outputs: {root}, {shutil.disk_usage(existing).free / 1e9:.0f} GB free{'' if writable else ', NOT WRITABLE'}")
    from cmma.models.spec import model_folder

    shipped = model_folder("builtin:toy_llava").parent
    names = sorted(path.name for path in shipped.glob("*/") if any(path.glob("*.safetensors")))
    say(f"small models: {', '.join(names) or 'none'}")
    return 0 if ready and writable else 1
