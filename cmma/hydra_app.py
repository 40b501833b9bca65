"""Hand a stage to Hydra, and turn every failure into one line and an exit status."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeAlias

from cmma.errors import CmmaError, ConfigError

if TYPE_CHECKING:
    from cmma.config import Config

Job: TypeAlias = "tuple[Config, list[str]]"
"""A configuration, and the words that the user typed for it."""

_FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-dir", "-cd", "--config-name", "-cn", "--config-path",
                     "-cp", "--experimental-rerun")
# Stage → (section, the keys of it that may be written without the section).
_SHORT_WORDS = {
    "benchmark": ("benchmark", ("task", "method")), "import-sae": ("imported", ("source", "subfolder", "revision")),
    "tables": ("tables", ("name", "scale")),
}


def run_with_hydra(stage: str, arguments: list[str]) -> int:
    """Compose the configuration of a stage and run it. Returns the exit status."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing a traceback and exiting
    try:
        _hydra_main(stage, arguments)
    except CmmaError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail(f"{stage} was interrupted; run the same command again to go on from what is finished", 130)
    except SystemExit as leave:  # Hydra's own way out of --help, -sc and argparse errors
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BrokenPipeError:  # the reader of our output has left: `cmma … | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at exit
        return 141
    except OSError as error:
        from hydra.errors import MissingConfigException

        if isinstance(error, MissingConfigException):
            return _fail(_first_lines(str(error)), ConfigError.exit_code)
        return _fail(f"{stage}: {error}; nothing half-written was kept", 1)
    except Exception as error:
        line = _configuration_error(error)
        if line is None:
            raise
        return _fail(line, ConfigError.exit_code)
    return 0


def _hydra_main(stage: str, arguments: list[str]) -> None:
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig

    from cmma.config import config_dir, schema, to_config

    ConfigStore.instance().store(name="schema", node=schema())

    jobs: list[Job] = []
    failures: list[CmmaError] = []

    def job(composed: DictConfig) -> None:
        if failures:  # an earlier job of a sweep
            return
        try:
            found = to_config(composed), _typed_words()
        except CmmaError as error:  # kept from Hydra, which would announce it in its own words
            failures.append(error)
            return
        if _runs_elsewhere():
            _run(stage, [found])
        else:  # Hydra composes all jobs of a sweep before the first one starts
            jobs.append(found)

    completing = "-sc" in arguments or "--shell-completion" in arguments
    arguments = [_full_word(stage, word) for word in arguments]
    sys.argv = ["cmma" if completing else f"cmma {stage}", *_flags_first(arguments)]
    hydra.main(config_path=str(config_dir()), config_name=stage, version_base="1.3")(job)()
    if failures:
        raise failures[0]
    _run(stage, jobs)


def _typed_words() -> list[str]:
    from hydra.core.hydra_config import HydraConfig

    return [word for word in HydraConfig.get().overrides.task if not word.startswith("run.")]


def _runs_elsewhere() -> bool:
    """A launcher takes the jobs of a sweep to other processes."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and not hydra.launcher._target_.endswith(".BasicLauncher")


def _run(stage: str, jobs: list[Job]) -> None:
    if stage == "train-sae" and len(jobs) > 1:
        from cmma.stages.sweep import run_sweep

        run_sweep(jobs)
        return
    for config, words in jobs:
        if stage == "benchmark":
            from cmma.stages.benchmark import run

            run(config)
        elif stage == "tables":
            from cmma.stages.tables import run_tables

            run_tables(config, words)
        elif stage == "run":
            from cmma.stages.chain import run_chain

            run_chain(config, words)
        elif stage == "import-sae" and not config.imported.source:
            raise ConfigError("import-sae needs source=FOLDER, or source=OWNER/NAME for a repository on the hub")
        else:
            from cmma.stages.runner import run_stage

            run_stage("train-sae" if stage == "import-sae" else stage, config, words)


def _full_word(stage: str, word: str) -> str:
    """A short word in full. A comma in `method=` or `name=` makes a list and no sweep."""
    key, equals, value = word.partition("=")
    section, short = _SHORT_WORDS.get(stage, ("", ()))
    if not equals or key not in short:
        return word
    if key in ("method", "name"):
        value = f"[{value.strip('[]')}]"
    return f"{section}.{key}={value}"


def _flags_first(arguments: list[str]) -> list[str]:
    """Hydra's argparse wants all overrides together; users put -m anywhere."""
    flags: list[str] = []
    overrides: list[str] = []
    words: Iterator[str] = iter(arguments)
    for word in words:
        if word.startswith("-"):
            flags.append(word)
            if word in _FLAGS_WITH_VALUE:
                flags += [value for value in [next(words, None)] if value is not None]
        else:
            overrides.append(word)
    return flags + overrides


def _configuration_error(error: BaseException) -> str | None:
    """One line for a wrong key, value or type; None when the error is not about the configuration."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, ValueError) and "can be specified" in str(error):  # flags that exclude each other
        return str(error)
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    cause = error.__cause__
    if isinstance(cause, CmmaError):
        return str(cause)
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        key = unknown.group(1)
        known = list(_known_keys())
        without_section = [full for full in known if full.endswith(f".{key}")][:3]
        near = without_section or difflib.get_close_matches(key, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "`--cfg job` shows all keys"
        return f"there is no key {key}; {hint}"
    if cause is not None:
        full_key = re.search(r"full_key: (\S+)", str(cause))
        return f"{_first_lines(str(error))}: {str(cause).splitlines()[0]}" + (
            f" (key {full_key.group(1)})" if full_key else "")
    return _first_lines(str(error))


def _known_keys() -> Iterator[str]:
    from omegaconf import DictConfig

    from cmma.config import schema

    def walk(node: DictConfig, prefix: str) -> Iterator[str]:
        for key in map(str, node):
            child = node._get_node(key)
            yield prefix + key
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from walk(child, f"{prefix}{key}.")

    yield from walk(schema(), "")


def _first_lines(text: str) -> str:
    """Hydra's messages end in search paths and links; the user needs what comes before them."""
    head = text.split("Config search path:")[0].split("\nSee https://")[0]
    return " ".join(head.split())


def _fail(line: str, status: int) -> int:
    print(f"cmma: {line}", file=sys.stderr, flush=True)
    return status
