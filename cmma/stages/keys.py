"""The keys of all stages for one configuration. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from cmma.artifacts.keys import (
    artifact_key,
    expand,
    fingerprint_contents,
    fingerprint_files,
    fingerprint_images,
    fingerprint_model,
)
from cmma.causal.config import WITH_DICTIONARY
from cmma.config import Config, load_group
from cmma.models.spec import ModelSpec, model_folder
from cmma.sae.interchange.config import ImportConfig
from cmma.sae.interchange.source import dictionary_files, local_folder
from cmma.stages.table import STAGES


@dataclass(frozen=True)
class Other:
    """An artifact of another configuration that a stage reads. `command` makes it."""

    stage: str
    keys: Keys
    command: str


def phase_models(config: Config) -> list[ModelSpec]:
    """The models of `phases.models`, or the one of the run. Raises ConfigError when there is no such model."""
    named = config.phases.models
    return [ModelSpec(**load_group("model", name)) for name in named] if named else [config.model]


class Keys:
    """Computes keys; fingerprints of data and models are taken once.

    Args:
        config: validated configuration.
        reported: keys of the artifacts that the report shows, by stage or stage:variant.
    """

    def __init__(self, config: Config, reported: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._reported = dict(reported or {})
        self._sections: dict[str, Any] = {}

    @property
    def configuration(self) -> Config:
        """Whose keys they are."""
        return self._config

    def key(self, stage: str) -> str:
        """The artifact key of a stage. Raises DataError when the data set or the model is not there."""
        return artifact_key(stage, STAGES[stage].version, self.config(stage), self.parents(stage))

    def parents(self, stage: str) -> dict[str, str]:
        """Keys of the direct parents."""
        direct = {name: self.key(name) for name in self.direct(stage)}
        direct |= {label: other.keys.key(other.stage) for label, other in self.others(stage).items()}
        return direct | self._reported if stage == "report" else direct

    def others(self, stage: str) -> dict[str, Other]:
        """What a stage reads of other configurations: later layers of a graph, every layer of the models of phases, the
        standard SAE beside M-SAE."""
        config = self._config
        if stage == "build-cmig":
            return {
                f"train-sae:{layer}": Other(
                    "train-sae", Keys(dataclasses.replace(config, layer=layer)), f"cmma train-sae layer={layer}")
                for layer in config.cmig.to_layers
            }
        if stage == "baselines" and "standard_sae" in config.baselines.methods:
            sae = dataclasses.replace(config.sae, arch="standard", lambda2=0.0, lambda3=0.0)
            own = dataclasses.replace(config, sae=sae, imported=ImportConfig())
            command = "cmma train-sae sae.arch=standard sae.lambda2=0 sae.lambda3=0 imported.source=''"
            return {"train-sae:standard": Other("train-sae", Keys(own), command)}
        found: dict[str, Other] = {}
        for spec in phase_models(config) if stage == "phases" else []:
            layers = list(range(spec.n_layers))
            activations = dataclasses.replace(config.activations, layers=layers)
            own = dataclasses.replace(config, model=spec, activations=activations, layer=0)
            words = f"model={spec.name} 'activations.layers={layers}'".replace(", ", ",")
            found[f"cache-activations:{spec.name}"] = Other(
                "cache-activations", Keys(own), f"cmma cache-activations {words}")
            numbers = (",".join(map(str, values)) for values in (layers, config.phases.seeds))
            command = "cmma train-sae -m {} layer={} seed={}".format(words, *numbers)
            for layer, seed in product(layers, config.phases.seeds):
                found[f"train-sae:{spec.name}:{layer}:{seed}"] = Other(
                    "train-sae", Keys(dataclasses.replace(own, layer=layer, seed=seed)), command)
        return found

    def direct(self, stage: str) -> tuple[str, ...]:
        """The stages whose artifacts it reads directly: those of the table, and what its configuration calls for."""
        needs_dictionary = stage == "trace" and self._config.trace.method in WITH_DICTIONARY
        return STAGES[stage].parents + (("train-sae",) if needs_dictionary else ())

    def ancestors(self, stage: str) -> list[str]:
        """Every stage that it builds on, furthest first."""
        found: list[str] = []
        for parent in self.direct(stage):
            found += [name for name in (*self.ancestors(parent), parent) if name not in found]
        return found

    def config(self, stage: str) -> dict[str, Any]:
        """The semantic configuration of a stage. A dictionary that is imported depends on nothing of training."""
        imports = stage == "train-sae" and self._config.imported.source
        sections = ("layer", "imported") if imports else STAGES[stage].sections
        return {name: self._section(name) for name in sections}

    def _section(self, name: str) -> Any:
        if name not in self._sections:
            self._sections[name] = self._read_section(name)
        return self._sections[name]

    def _read_section(self, name: str) -> Any:
        config = self._config
        if name == "layer":
            return config.sae_layer()
        value = getattr(config, name)
        if not dataclasses.is_dataclass(value):
            return value
        section = dataclasses.asdict(value)  # type: ignore[arg-type]
        if name == "activations":
            section |= {"layers": config.layers(), "text": config.text()}
        if name == "model":
            del section["cached_layers"]  # a default of the section `activations`, which holds the layers themselves
        if name == "model" and config.model.weights == "path":
            section["source"] = fingerprint_model(model_folder(config.model.source))
        if name == "dataset":
            section["path"] = dataset_fingerprint(config)
        if name in ("metric", "sae_metric"):
            section["encoder"] = encoder_identity(section["encoder"])
        if name == "imported":
            section = dictionary_identity(config.imported)
        if name == "interpret" and config.imported.source:  # what a class is; a trained dictionary's key has `sae`
            section |= {"tau": config.sae.tau, "any": config.sae.any}
        return section


def dataset_fingerprint(config: Config) -> str | None:
    """What lies at `dataset.path`; None for generated data. Raises DataError when nothing is there."""
    from cmma.data.tars import find_tars

    dataset = config.dataset
    if dataset.kind == "shapes" or dataset.path is None:
        return None
    folder = expand(dataset.path)
    if dataset.kind == "folder":
        return fingerprint_images(folder, dataset.captions)
    return fingerprint_files(find_tars(folder))


def dictionary_identity(imported: ImportConfig) -> dict[str, Any]:
    """What is imported: the files of a local folder, or what was asked of the hub.

    Raises:
        ConfigError: there is no such folder.
    """
    folder = local_folder(imported.source, imported.subfolder)
    if folder is None:
        return dataclasses.asdict(imported)
    return {"files": fingerprint_contents(dictionary_files(folder))}


def encoder_identity(name: str) -> list[str | None]:
    """What stands behind an `encoder`: its name and its weights. Raises ConfigError when there is no such model."""
    spec = ModelSpec(**load_group("model", name))
    folder = model_folder(spec.source)
    local = spec.weights == "path" and folder.is_dir()
    return [spec.name, fingerprint_model(folder) if local else spec.source, spec.revision]
