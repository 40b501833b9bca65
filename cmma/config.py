"""The typed schema of the whole configuration, where `conf/` lies, and how a configuration becomes objects.

Every stage composes the same tree, so that any stage can compute the keys of its parents. A section that belongs to
one domain is declared beside its owner (`cmma.sae.config` and so on) and mounted here. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from cmma.baselines.config import BaselinesConfig
from cmma.benchmark.config import BenchmarkConfig
from cmma.causal.config import InterventionConfig, TraceConfig
from cmma.checks import at_least, one_of
from cmma.cmig.config import CMIGConfig
from cmma.control.config import ControlConfig
from cmma.errors import ConfigError
from cmma.evaluation.config import SAEMetricConfig
from cmma.evaluation.scoring.config import ScoreConfig
from cmma.mitigation.config import MitigationConfig
from cmma.models.spec import ModelSpec
from cmma.phases.config import PhasesConfig
from cmma.sae.config import OptimConfig, SAEConfig
from cmma.sae.interchange.config import ImportConfig


@dataclass(frozen=True)
class DatasetConfig:
    """Where samples come from.

    Attributes:
        kind: `shapes` (generated), `folder` (images with a caption file) or `webdataset` (tars).
        path: the folder of images, or of tars; not used for shapes.
        captions: name of the caption file in the folder, with the columns file,caption.
        label_column: column of the caption file that holds a category; empty for none.
        max_side: images are scaled down so that their longer side has at most this many pixels; 0 = never.
        n_train, n_balanced, n_counter: scenes per split of the shapes world.
        n_pairs: pairs of scenes that differ in one factor (two samples each).
        concepts: complex concepts that become labels of the shapes world, such as "red AND NOT ring".
        train_fraction: folder and webdataset: this share of the samples is split `train`, the rest `held_out`.
        samples_per_shard: samples in one tar.
        seed: of the generated scenes, or of the split.
    """

    kind: str = "shapes"
    path: str | None = None
    captions: str = "captions.csv"
    label_column: str = "class"
    max_side: int = 0
    n_train: int = 4000
    n_balanced: int = 500
    n_counter: int = 500
    n_pairs: int = 200
    concepts: list[str] = field(default_factory=list)
    train_fraction: float = 0.8
    samples_per_shard: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("dataset.kind", self.kind, ("shapes", "folder", "webdataset"))
        if self.kind != "shapes" and not self.path:
            raise ConfigError(f"dataset.path is not set and dataset={self.kind} needs it; add dataset.path=FOLDER")
        at_least("dataset.samples_per_shard", self.samples_per_shard, 1)
        if not 0 < self.train_fraction < 1:
            raise ConfigError(f"dataset.train_fraction={self.train_fraction} is not between 0 and 1")


@dataclass(frozen=True)
class ActivationsConfig:
    """Which activations are cached.

    Attributes:
        layers: layers to cache; null = the model's own choice, or a quarter, a half and three quarters up its depth.
        split: split of the data set that is run.
        n_samples: at most this many samples; null = the whole split.
        text: what a generative model reads beside the image: `caption` (the caption as the answer to the model's
            prompt), `question` (the sample's first question with its answer) or `prompt` (the prompt alone). A model
            that writes no captions (`model.prompt` is empty) reads the question in any case.
        visual_per_sample, textual_per_sample: at most this many records of each modality per sample.
        joint: dual encoders: also store the joint view of each pair.
        context: pooled context vectors per sample and modality, for the encoder's cross-modal attention; 0 = none.
        dtype: float32 or bfloat16 on disk.
        batch_size: samples in one forward pass.
        samples_per_shard: samples in one shard.
        held_out: share of the samples kept out of SAE training.
        max_labels: the most frequent labels that are kept as y of Eq. 6.
        seed: of the record quota and of the held-out split.
    """

    layers: list[int] | None = None
    split: str = "train"
    n_samples: int | None = None
    text: str = "caption"
    visual_per_sample: int = 32
    textual_per_sample: int = 32
    joint: bool = True
    context: int = 4
    dtype: str = "float32"
    batch_size: int = 32
    samples_per_shard: int = 256
    held_out: float = 0.1
    max_labels: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("activations.text", self.text, ("caption", "question", "prompt"))
        one_of("activations.dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("batch_size", "samples_per_shard", "visual_per_sample", "textual_per_sample"):
            at_least(f"activations.{name}", getattr(self, name), 1)
        if not 0 < self.held_out < 1:
            raise ConfigError(f"activations.held_out={self.held_out} is not between 0 and 1")


@dataclass(frozen=True)
class InterpretConfig:
    """What is collected about each latent.

    Attributes:
        split: split whose samples are run; never the one that the dictionary was trained on. Null = `balanced` in the
            shapes world, `held_out` elsewhere.
        n_samples: at most this many samples.
        batch_size: samples in one forward pass.
        n_examples: top examples kept per latent.
        n_bootstrap: resamples behind the class intervals.
        max_pages: latents with a page of their own in the report, by density and class.
    """

    split: str | None = None
    n_samples: int = 400
    batch_size: int = 32
    n_examples: int = 12
    n_bootstrap: int = 1000
    max_pages: int = 200


@dataclass(frozen=True)
class MetricConfig:
    """What `cmma evaluate` measures.

    Attributes:
        n_samples: at most this many samples per split.
        n_questions: at most this many questions per split.
        batch_size: samples in one generation batch.
        max_new_tokens: length limit of captions.
        encoder: name of the dual-encoder model (a file in conf/model/) behind CLIP-Score and the Fréchet distance.
        block: retrieval is measured among this many pairs.
        n_images: images that a diffusion model makes per split, from the first captions.
        image_steps: denoising steps per image.
        guidance: weight of classifier-free guidance.
        n_bootstrap: resamples behind the intervals.
    """

    n_samples: int = 300
    n_questions: int = 2000
    batch_size: int = 50
    max_new_tokens: int = 96
    encoder: str = "toy_clip"
    block: int = 100
    n_images: int = 200
    image_steps: int = 25
    guidance: float = 4.0
    n_bootstrap: int = 10_000


@dataclass(frozen=True)
class LaunchConfig:
    """How and where work runs; never part of a key.

    Attributes:
        kind: `local` (in this process) or `torchrun` (elastic workers).
        nproc: workers per node. nodes: number of nodes.
        rdzv_endpoint: host:port of the rendezvous when nodes > 1; the same on every node.
        max_restarts: how often a failed group of workers is started again.
        tp: workers over which `train-sae` spreads the latents; batches are spread over nproc · nodes / tp.
        device: auto, cpu or cuda.
        threads: CPU threads per process; 0 = cores divided by nproc.
    """

    kind: str = "local"
    nproc: int = 1
    nodes: int = 1
    rdzv_endpoint: str = ""
    max_restarts: int = 0
    tp: int = 1
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        one_of("launch.kind", self.kind, ("local", "torchrun"))
        one_of("launch.device", self.device, ("auto", "cpu", "cuda"))
        at_least("launch.nproc", self.nproc, 1)
        at_least("launch.tp", self.tp, 1)
        if self.nproc * self.nodes % self.tp:
            raise ConfigError(f"launch.tp={self.tp} does not divide the {self.nproc * self.nodes} processes of "
                              "launch.nproc and launch.nodes; change one of them")
        if self.nodes > 1 and not self.rdzv_endpoint:
            raise ConfigError("launch.nodes > 1 needs launch.rdzv_endpoint=HOST:PORT, the same on every node")


@dataclass(frozen=True)
class LoggerConfig:
    """Where training metrics go besides metrics.jsonl; never part of a key.

    Attributes:
        wandb: mirror the metrics to Weights & Biases.
        mode: offline or online. project: the project's name there.
    """

    wandb: bool = False
    mode: str = "offline"
    project: str = "cmma"


@dataclass(frozen=True)
class PathsConfig:
    """Where results go; never part of a key."""

    outputs: str = "outputs"


@dataclass(frozen=True)
class RunConfig:
    """What `cmma run` does; never part of a key.

    Attributes:
        until: the last stage of the chain.
        traces: files of conf/trace/ that are run.
        interventions: files of conf/intervention/ that are run.
    """

    until: str = "report"
    traces: list[str] = field(default_factory=lambda: ["noise", "semantic_pair"])
    interventions: list[str] = field(
        default_factory=lambda: ["ablate", "amplify", "substitute", "combine", "clamp"]
    )


@dataclass(frozen=True)
class TablesConfig:
    """What `cmma tables` writes; never part of a key.

    Attributes:
        name: tables; empty = all of them.
        scale: a file of conf/tables/: the runs behind them.
        make: make what is missing; else a cell without its artifact says which command would.
        jobs: stages made at the same time, each in a process of its own; 0 = one for each core, at most four, and one
            alone where there is a GPU.
    """

    name: list[str] = field(default_factory=list)
    scale: str = "toy"
    make: bool = True
    jobs: int = 0


@dataclass(frozen=True)
class Config:
    """The whole tree.

    Attributes:
        layer: the layer whose dictionary is trained and used; null = the middle one of `activations.layers`.
        seed: of SAE training and of everything that is drawn after it.
    """

    model: ModelSpec = field(default_factory=ModelSpec)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    imported: ImportConfig = field(default_factory=ImportConfig)
    interpret: InterpretConfig = field(default_factory=InterpretConfig)
    trace: TraceConfig = field(default_factory=TraceConfig)
    intervention: InterventionConfig = field(default_factory=InterventionConfig)
    phases: PhasesConfig = field(default_factory=PhasesConfig)
    mitigation: MitigationConfig = field(default_factory=MitigationConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    baselines: BaselinesConfig = field(default_factory=BaselinesConfig)
    cmig: CMIGConfig = field(default_factory=CMIGConfig)
    metric: MetricConfig = field(default_factory=MetricConfig)
    sae_metric: SAEMetricConfig = field(default_factory=SAEMetricConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    run: RunConfig = field(default_factory=RunConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    tables: TablesConfig = field(default_factory=TablesConfig)
    layer: int | None = None
    seed: int = 0

    def layers(self) -> list[int]:
        """The layers that are cached, resolved against the model's depth. Raises ConfigError when out of range."""
        depth = self.model.n_layers
        layers = self.model.cached_layers if self.activations.layers is None else self.activations.layers
        if layers == []:
            raise ConfigError("activations.layers is empty; name layers, or leave it null for the model's own choice")
        if layers is None:
            layers = sorted({max(0, round(depth * share) - 1) for share in (0.25, 0.5, 0.75)})
        for layer in layers:
            if not 0 <= layer < depth:
                raise ConfigError(f"activations.layers holds {layer}; {self.model.name} has layers 0 to {depth - 1}")
        return sorted(set(layers))

    def text(self) -> str:
        """`activations.text` for this model: questions where it has no prompt that asks for a caption."""
        return self.activations.text if self.model.prompt else "question"

    def sae_layer(self) -> int:
        """The layer of the dictionary. Raises ConfigError when it is not among the cached ones."""
        layers = self.layers()
        if self.layer is None:
            return layers[len(layers) // 2]
        if self.layer not in layers:
            raise ConfigError(
                f"layer={self.layer} is not among activations.layers={layers}; add it there or choose one"
            )
        return self.layer


def config_dir() -> Path:
    """The folder of the YAML groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def schema() -> DictConfig:
    """The typed tree as OmegaConf sees it: every key and type is checked while a configuration is composed."""
    node = OmegaConf.structured(Config)
    _unlock(node)
    return node


def _unlock(node: DictConfig) -> None:
    """OmegaConf makes nodes of frozen dataclasses read-only; composition has to write, the objects stay frozen."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            _unlock(child)


def to_config(composed: DictConfig | ListConfig) -> Config:
    """A composed configuration as frozen objects. Raises ConfigError where a rule between values is broken."""
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    if config.seed < 0:
        raise ConfigError(f"seed={config.seed} is negative")
    config.sae_layer()  # raises when a layer is out of range
    return config


def load_config(path: Path) -> Config:
    """Read a resolved YAML, as workers do: no Hydra."""
    return to_config(OmegaConf.merge(schema(), OmegaConf.load(path)))


def load_group(group: str, name: str) -> dict[str, Any]:
    """One file of a configuration group as a plain dictionary. Raises ConfigError naming what there is."""
    folder = config_dir() / group
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(entry.stem for entry in folder.glob("*.yaml")))
        raise ConfigError(f"there is no {group}={name}; there are {known}")
    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}
