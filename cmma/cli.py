"""The command line: a dispatcher that imports nothing heavy until a stage runs.

`cmma <stage> [overrides]` pops the stage's name and hands the rest to Hydra, so that all of Hydra's own flags work.
"""

from __future__ import annotations

import os
import sys

from cmma.stages.table import STAGES

STAGE_HELP = {name: spec.help for name, spec in STAGES.items()} | {
    "import-sae": "take a dictionary that was trained elsewhere, in place of train-sae: cmma import-sae source=FOLDER",
    "run": "the whole chain, skipping what is done",
    "tables": "the paper's tables, from what exists and what is missing made: cmma tables name=table1,phases",
    "benchmark": "score methods against known truth: cmma benchmark task=planted method=msae,topk",
}
TOOL_HELP = {
    "ls": "list artifacts: cmma ls [STAGE]",
    "show": "one artifact, its parents and its numbers: cmma show KEY",
    "verify": "recompute every hash: cmma verify [KEY]",
    "doctor": "check the installation and the machine",
}


def usage() -> str:
    """The text of `cmma --help`."""
    width = max(map(len, (*STAGE_HELP, *TOOL_HELP))) + 2
    lines = ["cmma: Cross-Modal Mechanistic Analysis", ""]
    lines += ["  cmma STAGE [key=value ...]     cmma TOOL [...]", "", "Stages:"]
    lines += [f"  {name:<{width}}{text}" for name, text in STAGE_HELP.items()]
    lines += ["", "Tools:"]
    lines += [f"  {name:<{width}}{text}" for name, text in TOOL_HELP.items()]
    lines += [
        "", "Examples:",
        "  cmma run                                        everything, on the small model that ships with cmma",
        "  cmma train-sae model=llava13b sae.lambda1=3e-3  one stage of a real model",
        "  cmma train-sae -m sae=msae,topk seed=0,1        a sweep",
        "  cmma train-sae --cfg job                        the composed configuration",
        "  cmma train-sae --help                           groups and keys of a stage",
        "", "Tab completion: eval \"$(cmma -sc install=bash)\"",
    ]
    return "\n".join(lines)


def main() -> None:
    """Entry point of the `cmma` command."""
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(arguments: list[str]) -> int:
    """Run one command and return its exit status."""
    if "-sc" in arguments or "--shell-completion" in arguments:
        return _complete(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == "--version":
        from cmma import __version__

        print(f"cmma {__version__}")
        return 0
    if name in STAGE_HELP:
        from cmma.hydra_app import run_with_hydra

        return run_with_hydra(name, rest)
    if name in TOOL_HELP:
        from cmma.tools import run_tool

        return run_tool(name, rest)
    import difflib

    near = difflib.get_close_matches(name, [*STAGE_HELP, *TOOL_HELP], n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`cmma --help` lists them"
    print(f"cmma: there is no stage or tool {name!r}; {hint}", file=sys.stderr)
    return 2


def _complete(arguments: list[str]) -> int:
    """Tab completion: stage names first, then Hydra's own completion of the stage's keys."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    stage = next((word for word in words[1:] if word in STAGE_HELP), None)
    querying = any(argument.startswith("query=") for argument in arguments)
    if querying and stage is None:
        prefix = words[1] if len(words) > 1 and not line.endswith(" ") else ""
        print("\n".join(name for name in (*STAGE_HELP, *TOOL_HELP) if name.startswith(prefix)))
        return 0
    if stage is not None:
        position = line.index(stage)
        os.environ["COMP_LINE"] = line[:position] + line[position + len(stage):].lstrip()
    from cmma.hydra_app import run_with_hydra

    given = arguments[1:] if arguments[0] in STAGE_HELP else arguments
    return run_with_hydra(stage or "run", given)


if __name__ == "__main__":
    main()
