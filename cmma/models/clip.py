"""CLIP through open_clip (also the shapes world's `toy_clip`, which is of the same class).

Two towers, no shared stream: a record is a pair view `[h_v ; h_t]` at the same relative depth of both. The text tower
is always built as a module of its own (`force_custom_text`), so that its projected embedding can be hooked. Heads are
not sites: open_clip's attention is functional and never calls its output projection as a module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel, Records
from cmma.models.pair_views import pair_sites, pair_views
from cmma.models.sites import AttentionRow, Port, RecordSite, SiteRow, expand, expand_attention, resolve
from cmma.models.spec import ModelSpec
from cmma.models.weights import loading, quiet_logging, seeded, torch_dtype, weights_folder

ROOTS = {"vision": ("visual",), "text": ("text",)}
_TOWER_SITES: tuple[tuple[str, str, Port], ...] = (
    ("layers.{l}.resid_pre", "transformer.resblocks.{l}", "input"),
    ("layers.{l}.attn_in", "transformer.resblocks.{l}.ln_1", "input"),
    ("layers.{l}.mlp_in", "transformer.resblocks.{l}.ln_2", "input"),
    ("layers.{l}.attn_out", "transformer.resblocks.{l}.attn", "output"),
    ("layers.{l}.mlp_out", "transformer.resblocks.{l}.mlp", "output"),
    ("layers.{l}.resid_post", "transformer.resblocks.{l}", "output"),
    ("embed", "", "output"),  # projected into the shared space, before normalisation
)
SITES = tuple(
    SiteRow(f"{tower}.{name}", tower, path, port)
    for tower in ROOTS
    for name, path, port in _TOWER_SITES
)
ATTENTION = tuple(
    AttentionRow(tower, tower, "transformer.resblocks.{l}.attn", "attn_mask", projection="out_proj", per_head=True)
    for tower in ROOTS
)
HUB_FILES = ("open_clip_config.json", "open_clip*.safetensors", "*.json", "vocab.txt", "merges.txt")
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49_408, "width": 24, "heads": 2, "layers": 2},
}
"""Architecture "clip-tiny", for tests and dry runs with random weights; towers of unequal width and depth."""
PRECISIONS = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}


def load(spec: ModelSpec, device: str = "cpu", dtype: str = "float32") -> ClipModel:
    """Load a CLIP from the hub, a folder with `open_clip_config.json`, or at random (see `cmma.models.load_model`)."""
    torch_dtype(dtype)
    options: dict[str, Any] = {"precision": PRECISIONS[dtype], "force_custom_text": True, "load_weights": False}
    weights = None
    if spec.weights == "random" and spec.architecture == "clip-tiny":
        name, options = "ViT-B-32-quickgelu", options | deepcopy(TINY)
    elif spec.weights == "random":
        name = _known_architecture(spec)
    else:
        folder = weights_folder(spec, _repository(spec), HUB_FILES)
        name, weights = f"local-dir:{folder}", _weights_file(folder)
    with loading(spec, name, "CLIP"):
        with quiet_logging(), seeded(spec.seed):
            module = open_clip.create_model(name, **options)
            tokenizer = open_clip.get_tokenizer(name, context_length=module.context_length)
        if weights is not None:
            open_clip.load_checkpoint(module, str(weights))
    return ClipModel(spec, module.to(device), tokenizer)


class ClipModel(MultimodalModel):
    """A CLIP with its image transform and tokenizer. See `MultimodalModel` for the interface.

    `n_layers` is the depth of the deeper tower; layer l of the records pairs blocks at the same relative depth.
    """

    kind = "dual_encoder"
    streams = ("vision", "text")
    image_site = "vision.layers.0.resid_pre"
    unreached = {"vision": ("text",), "text": ("vision",)}  # noqa: RUF012

    def __init__(self, spec: ModelSpec, module: nn.Module, tokenizer: Any) -> None:
        roots: dict[str, Any] = {root: resolve(module, paths, root) for root, paths in ROOTS.items()}
        self.depths = {root: len(tower.transformer.resblocks) for root, tower in roots.items()}
        causal = {"vision": False, "text": roots["text"].attn_mask is not None}
        rows = [row._replace(causal=causal[row.queries]) for row in ATTENTION]
        attentions = expand_attention(rows, roots, self.depths)
        super().__init__(spec, module, expand(SITES, roots, self.depths), max(self.depths.values()), attentions)
        self.tokenizer = tokenizer
        self.transform = image_transform_v2(PreprocessCfg(**self.module.visual.preprocess_cfg), is_train=False)
        self.module.text.transformer.register_forward_pre_hook(_fit_mask, with_kwargs=True)

    def collate(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        padding: Literal["right", "left"] = "right",
    ) -> Batch:
        """Images with one text each, default the caption. Raises ConfigError for answers: there is no decoder.

        The padding behind the longest text is cut off: no token of a causal tower sees it, and it is most of a context.
        """
        if answers is not None:
            raise ConfigError(f"{self.spec.name} scores texts; give whole texts, not answers")
        images_BCHW = torch.stack([self.transform(sample.image) for sample in samples]).to(self.dtype)
        text_BS = self.tokenizer(list(texts) if texts is not None else [sample.caption for sample in samples])
        longest = int(self.end_of_text({"text": text_BS}).max()) + 1
        return Batch({"image": images_BCHW, "text": text_BS[:, :longest]}).to(self.device)

    def token_modality(self, batch: Mapping[str, Tensor]) -> Tensor:
        """TEXTUAL for the words and EOT of the text tower, DROPPED for its BOS and for padding after EOT."""
        position_S = torch.arange(batch["text"].shape[1], device=batch["text"].device)
        kept_BS = (position_S > 0) & (position_S <= self.end_of_text(batch)[:, None])
        return torch.where(kept_BS, int(Modality.TEXTUAL), int(Modality.DROPPED)).to(torch.int8)

    def site_modality(self, site: str, batch: Mapping[str, Tensor], rows: int, length: int) -> Tensor:
        """The tower's modality; text tokens as in `token_modality`."""
        tower = site.split(".")[0]
        if tower == "text" and length > 1:
            return self.token_modality(batch)
        modality = Modality.TEXTUAL if tower == "text" else Modality.VISUAL
        return torch.full((rows, length), int(modality), dtype=torch.int8, device=self.device)

    def end_of_text(self, batch: Mapping[str, Tensor]) -> Tensor:
        """int64[B]: position of the EOT token, where the text tower is pooled."""
        text = self.module.text
        if text.pool_type == "eos":
            return (batch["text"] == text.eos_id).int().argmax(dim=1)
        return batch["text"].argmax(dim=1)  # "argmax": EOT has the highest id

    def record_sites(self, layer: int) -> tuple[RecordSite, ...]:
        """The residual streams of both towers at relative depth (layer + 1) / n_layers."""
        towers = {"vision": self.module.visual, "text": self.module.text}
        widths = {name: tower.transformer.width for name, tower in towers.items()}
        return pair_sites(layer, self.n_layers, self.depths, widths)

    def records(self, acts: Mapping[str, Tensor], batch: Mapping[str, Tensor], layer: int) -> Records:
        """Visual views of all image tokens, textual views of all text tokens, and one joint view [CLS ; EOT]."""
        seen, read = self.record_sites(layer)
        return pair_views(acts[seen.site], acts[read.site], self.token_modality(batch), self.end_of_text(batch))

    def pooled_position(self, batch: Batch, modality: Modality) -> Tensor:
        """CLS (position 0) of the image tower, EOT of the text tower."""
        end_B = self.end_of_text(batch)
        return end_B if modality == Modality.TEXTUAL else torch.zeros_like(end_B)

    def image_grid(self, batch: Mapping[str, Tensor], layer: int | None = None) -> tuple[int, int]:
        """Patches of the image tower: 7 × 7 for ViT-B/32."""
        rows, columns = self.module.visual.grid_size
        return rows, columns

    def image_positions(self, batch: Mapping[str, Tensor], layer: int | None = None) -> Tensor:
        """All image tokens but CLS."""
        rows, columns = self.image_grid(batch)
        return torch.arange(1, rows * columns + 1, device=self.device).expand(len(batch["image"]), -1)

    def embeddings(self, output: Any) -> tuple[Tensor, Tensor]:
        """Unit-norm image and text embeddings, Float[B, E] each, of a finished forward pass."""
        image_BE, text_BE, *_ = output
        return image_BE, text_BE

    def similarity(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Cosine of every image with every text of the batch: Float[B images, B texts]."""
        image_BE, text_BE = self.embeddings(self(**batch))
        return image_BE @ text_BE.T


def _fit_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Cut the text tower's causal mask, which open_clip keeps for the whole context, to the length of this batch."""
    length = args[0].shape[1]
    if kwargs.get("attn_mask") is not None:
        kwargs["attn_mask"] = kwargs["attn_mask"][..., :length, :length]
    return args, kwargs


def _known_architecture(spec: ModelSpec) -> str:
    if spec.architecture is None or spec.architecture not in open_clip.list_models():
        raise ConfigError(
            f"model.architecture={spec.architecture!r} is not an open_clip architecture; "
            "for example ViT-B-32-quickgelu (see open_clip.list_models())"
        )
    return spec.architecture


def _weights_file(folder: Path) -> Path:
    """The whole model's safetensors file; hub folders may hold the image tower alone beside it."""
    return next(iter(sorted(folder.glob("open_clip*.safetensors")) or sorted(folder.glob("*.safetensors"))))


def _repository(spec: ModelSpec) -> str:
    """The hub repository of `spec.source`: an id, or the one that open_clip lists for a pretrained tag."""
    if spec.weights != "hub" or "/" in spec.source:
        return spec.source
    entry = open_clip.get_pretrained_cfg(_known_architecture(spec), spec.source)
    if not entry.get("hf_hub"):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(spec.architecture))
        raise ConfigError(f"model.source={spec.source!r} has no hub weights for {spec.architecture}; tags are {tags}")
    return entry["hf_hub"].rstrip("/")
