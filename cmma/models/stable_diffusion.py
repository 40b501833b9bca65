"""Stable Diffusion through diffusers (also the shapes world's `toy_sd`, which is a pipeline of the same classes).

A forward pass is one denoising of a sample's own image under its caption: the image's latent with noise of a timestep
goes into the U-Net, which reads the finished text by cross-attention. Timestep and noise are functions of the sample's
key alone, so every pass of a sample is the same one. A record is a pair view `[h_v ; h_t]`: spatial tokens of a
transformer block of the U-Net, and tokens of the text encoder at the same relative depth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel, Records
from cmma.models.pair_views import pair_views
from cmma.models.sites import Port, RecordSite, Site, SiteRow, expand, resolve
from cmma.models.spec import ModelSpec
from cmma.models.stable_diffusion_architectures import architecture, build_pipeline
from cmma.models.weights import drawing, loading, quiet_logging, torch_dtype, weights_folder

TEXT_ROOTS = ("text_encoder.text_model", "text_encoder")
_TEXT_SITES: tuple[tuple[str, str, Port], ...] = (
    ("embed", "embeddings", "output"),
    ("layers.{l}.resid_pre", "encoder.layers.{l}", "input"),
    ("layers.{l}.heads", "encoder.layers.{l}.self_attn.out_proj", "input"),
    ("layers.{l}.attn_out", "encoder.layers.{l}.self_attn", "output"),
    ("layers.{l}.mlp_out", "encoder.layers.{l}.mlp", "output"),
    ("layers.{l}.resid_post", "encoder.layers.{l}", "output"),
    ("norm", "final_layer_norm", "output"),  # what the U-Net reads
)
_BLOCK_SITES: tuple[tuple[str, str, Port], ...] = (
    ("resid_pre", "", "input"),
    ("attn1_heads", "attn1.to_out.0", "input"),  # self-attention
    ("attn1_out", "attn1", "output"),
    ("attn2_heads", "attn2.to_out.0", "input"),  # cross-attention to the text
    ("attn2_out", "attn2", "output"),
    ("mlp_out", "ff", "output"),
    ("resid_post", "", "output"),
)
PARTS = ("unet", "vae", "text_encoder")
HUB_FILES = (
    "model_index.json", "*/*.json", "tokenizer/*.txt", "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
)  # fmt: skip
TIMESTEPS = (0.2, 0.8)
"""Shares of the noise schedule between which a sample's timestep lies: below, the text hardly matters any more; above,
hardly anything of the image is left."""


def load(spec: ModelSpec, device: str = "cpu", dtype: str = "float32") -> StableDiffusionModel:
    """Load a pipeline from the hub, a folder, or at random (see `cmma.models.load_model`)."""
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    if spec.weights == "random":
        sizes = architecture(spec.architecture)
        with drawing(spec, device):
            pipeline: Any = build_pipeline(sizes)
    else:
        folder = weights_folder(spec, spec.source, HUB_FILES, PARTS)
        # Its loader warns where there is no safety checker.
        with loading(spec, folder, "Stable Diffusion"), quiet_logging():
            pipeline = StableDiffusionPipeline.from_pretrained(
                folder, safety_checker=None, requires_safety_checker=False, use_safetensors=True,
                local_files_only=True,
            )
    for part in PARTS:  # torch's own `to`: diffusers' keeps some layers in float32 and warns
        nn.Module.to(getattr(pipeline, part), device=device, dtype=torch_dtype(dtype))
    return StableDiffusionModel(spec, pipeline)


class Denoised(NamedTuple):
    """What a forward pass gives: the U-Net's prediction and what it should be, Float[B, C, rows, columns] each."""

    prediction: Tensor
    target: Tensor


class Denoiser(nn.Module):
    """One denoising pass as a module: noise the latents, read the text, predict.

    `latent` passes the clean latents on as tokens [B, rows · columns, C]; it exists to be hooked.
    """

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.text_encoder, self.unet, self.vae = pipeline.text_encoder, pipeline.unet, pipeline.vae
        self.latent = nn.Identity()
        self.scheduler = pipeline.scheduler

    def forward(self, latents: Tensor, noise: Tensor, timestep: Tensor, input_ids: Tensor) -> Denoised:
        tokens_BPC = self.latent(latents.flatten(2).transpose(1, 2))
        clean_BCYX = tokens_BPC.transpose(1, 2).view_as(latents)
        noisy_BCYX = self.scheduler.add_noise(clean_BCYX, noise, timestep)
        text_BTD = self.text_encoder(input_ids=input_ids)[0]
        rows = len(text_BTD)  # more than images where many readings of one text are compared
        prediction = self.unet(
            noisy_BCYX.expand(rows, -1, -1, -1), timestep.expand(rows), encoder_hidden_states=text_BTD
        ).sample
        match self.scheduler.config.prediction_type:
            case "epsilon":
                target = noise
            case "v_prediction":
                target = self.scheduler.get_velocity(clean_BCYX, noise, timestep)
            case _:
                target = clean_BCYX
        return Denoised(prediction, target)


class StableDiffusionModel(MultimodalModel):
    """A Stable Diffusion pipeline. See `MultimodalModel` for the interface.

    `n_layers` is the number of transformer blocks of the U-Net, in the order in which they run (16 in Stable Diffusion
    2.1: six down, one in the middle, nine up). The image is what the model makes, so the input that noise corrupts is
    the prompt: `image_site` is the text's embedding.
    """

    kind = "diffusion"
    streams = ("text", "unet")
    image_site = "text.embed"
    unreached = {"unet": ("text",)}  # noqa: RUF012
    streams_apart = False

    def __init__(self, spec: ModelSpec, pipeline: Any) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self.pipeline, self.tokenizer = pipeline, pipeline.tokenizer
        module: Any = Denoiser(pipeline)
        text: Any = resolve(module, TEXT_ROOTS, "text encoder")
        self.text_depth, self.text_width = len(text.encoder.layers), module.text_encoder.config.hidden_size
        self.side = module.unet.config.sample_size
        rows = [SiteRow(f"text.{name}", "text", path, port) for name, path, port in _TEXT_SITES]
        blocks = transformer_blocks(module.unet)
        sites = [*expand(rows, {"text": text}, {"text": self.text_depth}), Site("vae.latent", module.latent)]
        for number, (block, _) in enumerate(blocks):
            sites += [
                Site(f"unet.blocks.{number}.{name}", block.get_submodule(path), port)
                for name, path, port in _BLOCK_SITES
            ]
        sites.append(Site("unet.mid", module.unet.mid_block, "map"))
        self.widths = [block.attn1.to_q.in_features for block, _ in blocks]
        self.sides = [self.side // reduction for _, reduction in blocks]
        self.unet_heads = [block.attn1.heads for block, _ in blocks]
        super().__init__(spec, module, sites, len(blocks))

    def entry(self, site: str) -> nn.Module:
        """The text encoder or the U-Net: generation calls each on its own."""
        parts = {"text": self.module.text_encoder, "unet": self.module.unet}
        return parts.get(site.split(".")[0], self.module)

    def n_heads(self, site: str) -> int:
        """See `MultimodalModel.n_heads`; both attentions of a U-Net's block have as many."""
        if site.startswith("text."):
            return self.module.text_encoder.config.num_attention_heads
        return self.unet_heads[int(site.split(".")[-2])]

    def collate(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        padding: Literal["right", "left"] = "right",
    ) -> Batch:
        """Latents of the images, with one text each (default the caption), and each sample's own timestep and noise.

        Raises:
            ConfigError: answers are given; there is no decoder of text.
        """
        if answers is not None:
            raise ConfigError(f"{self.spec.name} makes images; give whole texts, not answers")
        pixels_BCYX = torch.stack([self._pixels(sample.image) for sample in samples])
        with torch.no_grad():
            vae = self.module.vae
            latents_BCYX = vae.encode(pixels_BCYX.to(self.device, self.dtype)).latent_dist.mode()
            latents_BCYX = latents_BCYX * vae.config.scaling_factor
        draws = [self._draw(sample.key, latents_BCYX.shape[1:]) for sample in samples]
        return Batch({
            "latents": latents_BCYX,
            "noise": torch.stack([noise for _, noise in draws]).to(latents_BCYX),
            "timestep": torch.tensor([timestep for timestep, _ in draws]),
            "input_ids": self.token_ids(list(texts) if texts is not None else [s.caption for s in samples]),
        }).to(self.device)  # fmt: skip

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """int64[B, S]: prompts as the pipeline tokenises them, padded to the text encoder's full length."""
        length = self.tokenizer.model_max_length
        padded = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return padded["input_ids"].to(self.device)

    def _pixels(self, image: Image.Image) -> Tensor:
        """Float[3, Y, X] in [−1, 1]: the shorter side to the model's size, then the centre."""
        side = self.side * self.pipeline.vae_scale_factor
        factor = side / min(image.size)
        width, height = (max(side, round(length * factor)) for length in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.convert("RGB").crop((left, top, left + side, top + side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1

    def _draw(self, key: str, shape: Sequence[int]) -> tuple[int, Tensor]:
        """Timestep and noise of a sample: the same on every machine and in every batch."""
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
        generator = torch.Generator().manual_seed(seed)
        steps = self.module.scheduler.config.num_train_timesteps
        first, last = (int(share * steps) for share in TIMESTEPS)
        timestep = int(torch.randint(first, last, (), generator=generator))
        return timestep, torch.randn(tuple(shape), generator=generator)

    def token_modality(self, batch: Mapping[str, Tensor]) -> Tensor:
        """TEXTUAL for the words and the end mark, DROPPED for the start mark and the padding."""
        ids_BS = batch["input_ids"]
        position_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        kept_BS = (position_S > 0) & (position_S <= self.end_of_text(ids_BS)[:, None])
        return torch.where(kept_BS, int(Modality.TEXTUAL), int(Modality.DROPPED)).to(torch.int8)

    def end_of_text(self, ids_BS: Tensor) -> Tensor:
        """int64[B]: position of the end mark (the first of them: some models pad with it)."""
        return (ids_BS == self.tokenizer.eos_token_id).int().argmax(dim=1)

    def site_modality(self, site: str, batch: Mapping[str, Tensor], rows: int, length: int) -> Tensor:
        """Text tokens as in `token_modality`; all VISUAL in the U-Net and the latent."""
        if site.startswith("text."):
            return self.token_modality(batch)
        return torch.full((rows, length), int(Modality.VISUAL), dtype=torch.int8, device=self.device)

    def record_sites(self, layer: int) -> tuple[RecordSite, ...]:
        """Block `layer` of the U-Net, and the text encoder's layer at relative depth (layer + 1) / n_layers."""
        below = -(-(layer + 1) * self.text_depth // self.n_layers) - 1
        width = self.widths[layer]
        return (
            RecordSite(f"unet.blocks.{layer}.resid_post", Modality.VISUAL, 0, width),
            RecordSite(f"text.layers.{below}.resid_post", Modality.TEXTUAL, width, self.text_width),
        )

    def records(self, acts: Mapping[str, Tensor], batch: Mapping[str, Tensor], layer: int) -> Records:
        """Visual views of all spatial tokens, textual views of all words, a joint view [mean of all ; end mark]."""
        seen, read = self.record_sites(layer)
        image_BPV = acts[seen.site]
        return pair_views(
            image_BPV, acts[read.site], self.token_modality(batch), self.end_of_text(batch["input_ids"]),
            summary_BV=image_BPV.mean(dim=1),
        )  # fmt: skip

    def pooled_position(self, batch: Batch, modality: Modality) -> Tensor:
        """The end mark of the text. No spatial token sums the image up; position 0 stands in its place."""
        end_B = self.end_of_text(batch["input_ids"])
        return end_B if modality == Modality.TEXTUAL else torch.zeros_like(end_B)

    def image_grid(self, batch: Mapping[str, Tensor], layer: int | None = None) -> tuple[int, int]:
        """Spatial tokens of the U-Net's block `layer`; the latent's own without one."""
        side = self.side if layer is None else self.sides[layer]
        return side, side

    def image_positions(self, batch: Mapping[str, Tensor], layer: int | None = None) -> Tensor:
        """All spatial tokens of the block."""
        rows, columns = self.image_grid(batch, layer)
        return torch.arange(rows * columns, device=self.device).expand(len(batch["input_ids"]), -1)

    def denoising_error(self, batch: Batch) -> Tensor:
        """Float[B]: mean squared error of the prediction, each sample at its own timestep and noise. Differentiable."""
        prediction, target = self(**batch)
        return (prediction.float() - target.float()).square().flatten(1).mean(dim=1)

    def without_text(self, batch: Batch) -> Batch:
        """The same batch with empty prompts."""
        empty = self.token_ids([""]).expand(len(batch["input_ids"]), -1)
        return Batch({**batch, "input_ids": empty})

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """What the U-Net reads of each prompt, Float[B, S, D], with every edit that is in force."""
        return self.module.text_encoder(input_ids=self.token_ids(prompts))[0]

    @torch.no_grad()
    def generate_images(
        self, prompts: Sequence[str], seeds: Sequence[int], steps: int = 25, guidance: float = 4.0
    ) -> list[Image.Image]:
        """One image per prompt, from the noise of its seed, with every edit that is in force in every pass.

        The pipeline's own sampling; edits act on the prompt's passes and on those of the empty prompt that guidance
        contrasts it with: rows B … 2 B and 0 … B of the U-Net's batch.
        """
        text, empty = (self.encode_prompts(texts) for texts in (prompts, [""] * len(prompts)))
        return self.pipeline(
            prompt_embeds=text, negative_prompt_embeds=empty, num_inference_steps=steps, guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images  # fmt: skip


def transformer_blocks(unet: Any) -> list[tuple[Any, int]]:
    """Every transformer block of a U-Net in the order in which they run, with how much smaller its map is."""
    deepest = len(unet.down_blocks) - 1
    stages = [
        *((block, level) for level, block in enumerate(unet.down_blocks)), (unet.mid_block, deepest),
        *((block, deepest - level) for level, block in enumerate(unet.up_blocks)),
    ]  # fmt: skip
    return [
        (block, 2**level)
        for stage, level in stages
        for attention in getattr(stage, "attentions", ())
        for block in attention.transformer_blocks
    ]
