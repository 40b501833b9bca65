"""Training of toy_sd: the autoencoder, then what prompts mean, then diffusion with text encoder and U-Net together.

Supervision is dense. In the second stage the text encoder names, at every object word, the object's attributes and its
cell. In the third, beside the diffusion loss, the U-Net's middle names the object at every latent position, which makes
it read the prompt early on. The linear heads for that are left behind when the pipeline is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cmma.artifacts.files import atomic_path
from cmma.console import track
from cmma.testbed.render import render
from cmma.testbed.scenes import COLORS, GRID, MAX_OBJECTS, SHAPES, SIZES, TEXTURES
from cmma.testbed.training.evaluate_sd import measure
from cmma.testbed.training.job import Job
from cmma.testbed.training.llava_data import FACTOR_LEVELS, IGNORE
from cmma.testbed.training.loop import Recipe, train
from cmma.testbed.training.sd_data import DiffusionBatches, ImageBatches, Step, TextBatches, pixels
from cmma.testbed.training.toy_sd import ToySD, build_model, build_scheduler, save_folder
from cmma.testbed.world import sample_scenes

KL_WEIGHT = 1e-3  # on the mean over latent dimensions; the mean absolute error has weight 1
SQUARE_WEIGHT = 2.0  # of the mean squared error of the autoencoder
LABEL_WEIGHT = 0.05  # of the label loss beside the diffusion loss
SCENES = 32_768  # whose latents are cached
_WORD_LEVELS = {"shape": len(SHAPES), "color": len(COLORS), "size": len(SIZES), "texture": len(TEXTURES)}
_ENCODE_BATCH = 128


def train_autoencoder(model: ToySD, recipe: Recipe, seed: int, checkpoint: Path) -> float:
    """Train the VAE in place; returns minutes."""
    vae: Any = model.vae
    vae.train()

    def loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        pixels_NCYX, noise = batch
        with torch.autocast(pixels_NCYX.device.type, torch.bfloat16):
            mean, log_variance = vae.encode(pixels_NCYX).latent_dist.parameters.chunk(2, dim=1)
            mean, log_variance = mean.float(), log_variance.float().clamp(-30, 20)
            latents = mean + (log_variance / 2).exp() * noise
            decoded = vae.decode(latents).sample.float()
        difference = decoded - pixels_NCYX
        # The absolute error alone is content with the background, which is most of an image.
        error = difference.abs().mean() + SQUARE_WEIGHT * difference.square().mean()
        divergence = (mean**2 + log_variance.exp() - 1 - log_variance).mean() / 2
        return error + KL_WEIGHT * divergence, {"error": difference.abs().mean().item(), "kl": divergence.item()}

    batches = ImageBatches(recipe.batch, recipe.steps, seed, vae.config.latent_channels)
    minutes = train(vae, recipe, batches, loss, checkpoint)
    vae.eval()
    return minutes


def factor_losses(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Sum over factors of the cross-entropy [N, classes, …] where a label is given, and the mean accuracy."""
    total, right = torch.zeros((), device=next(iter(labels.values())).device), []
    for name, of in logits.items():
        given = labels[name] != IGNORE
        total = total + F.cross_entropy(of.float(), labels[name], ignore_index=IGNORE)
        right.append((of.argmax(1) == labels[name])[given].float().mean().item())
    return total, sum(right) / len(right)


class PromptReader(nn.Module):
    """The text encoder with a linear head per factor at every token, and for the cells of all objects at the end."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        width = text_encoder.config.hidden_size
        levels = _WORD_LEVELS | {"cell": GRID**2}
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in levels.items()})
        self.heads["end"] = nn.Linear(width, MAX_OBJECTS * GRID**2)

    def forward(self, ids_BT: Tensor) -> dict[str, Tensor]:
        """Logits [B, classes, 48] per factor, and [B, 9, 4] for "end"."""
        hidden_BTD = self.text_encoder(ids_BT).last_hidden_state
        logits = {name: head(hidden_BTD).transpose(1, 2) for name, head in self.heads.items() if name != "end"}
        end_B = (ids_BT == self.text_encoder.config.eos_token_id).int().argmax(1)
        end = self.heads["end"](hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), end_B])
        return {**logits, "end": end.view(-1, MAX_OBJECTS, GRID**2).transpose(1, 2)}


def train_prompts(model: ToySD, recipe: Recipe, seed: int, checkpoint: Path) -> float:
    """Train the text encoder in place on what prompts say; returns minutes."""
    reader = PromptReader(model.text_encoder).to(next(model.parameters()).device).train()

    def loss(batch: tuple[Tensor, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
        ids, labels = batch
        with torch.autocast(ids.device.type, torch.bfloat16):
            logits = reader(ids)
        total, right = factor_losses(logits, labels)
        return total, {"right": right}

    return train(reader, recipe, TextBatches(recipe.batch, recipe.steps, seed), loss, checkpoint)


@torch.no_grad()
def cached_latents(model: ToySD, seed: int, file: Path, n_scenes: int) -> Tensor:
    """Latents (means of the posterior, unscaled) of the training scenes, float32 [N, C, 6, 6]; kept in `file`."""
    vae: Any = model.vae
    if not file.exists():
        vae.eval()
        device = next(model.parameters()).device
        parts = []
        for start in track(range(0, n_scenes, _ENCODE_BATCH), "Encoding scenes", total=-(-n_scenes // _ENCODE_BATCH)):
            images, _ = render(sample_scenes(min(_ENCODE_BATCH, n_scenes - start), "train", seed, start))
            with torch.autocast(device.type, torch.bfloat16):
                parts.append(vae.encode(pixels(images).to(device)).latent_dist.mean.float().cpu())
        with atomic_path(file) as temporary:
            save_file({"latents": torch.cat(parts).contiguous()}, temporary)
    return load_file(file)["latents"]


class Denoiser(nn.Module):
    """Text encoder and U-Net with one linear head per factor on every position of the U-Net's middle."""

    def __init__(self, model: ToySD) -> None:
        super().__init__()
        unet: Any = model.unet
        self.text_encoder, self.unet = model.text_encoder, unet
        width = unet.config.block_out_channels[-1]
        self.heads = nn.ModuleDict({name: nn.Linear(width, levels) for name, levels in FACTOR_LEVELS.items()})
        self._middle = torch.empty(0)
        self.release = unet.mid_block.register_forward_hook(self._keep).remove

    def _keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self._middle = output

    def forward(self, noisy_BCYX: Tensor, t_B: Tensor, ids_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Predicted v [B, C, 6, 6] and logits [B, classes, 36] per factor."""
        text_BTD = self.text_encoder(ids_BT).last_hidden_state
        v_BCYX = self.unet(noisy_BCYX, t_B, text_BTD).sample
        middle_BPD = self._middle.flatten(2).transpose(1, 2)
        return v_BCYX, {name: head(middle_BPD).transpose(1, 2) for name, head in self.heads.items()}


def train_diffusion(
    model: ToySD, recipe: Recipe, seed: int, out: Path, preview: Callable[[], None], n_scenes: int = SCENES
) -> float:
    """Train text encoder and U-Net in place to predict v on cached latents; returns minutes."""
    latents = cached_latents(model, seed, out / "latents.safetensors", n_scenes)
    vae: Any = model.vae
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    device = next(model.parameters()).device
    latents = (latents / latents.std()).to(device)
    scheduler: Any = build_scheduler()
    kept_T = scheduler.alphas_cumprod.to(device)
    denoiser = Denoiser(model).to(device).train()

    def loss(batch: tuple[Any, ...]) -> tuple[Tensor, dict[str, float]]:
        row, ids, t, noise, labels = Step(*batch)
        clean = latents[row]
        kept = kept_T[t][:, None, None, None]
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        target = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        with torch.autocast(device.type, torch.bfloat16):
            v, logits = denoiser(noisy, t, ids)
        error = (v.float() - target).square().mean()
        total, right = factor_losses(logits, labels)
        return error + LABEL_WEIGHT * total, {"error": error.item(), "right": right}

    batches = DiffusionBatches(
        recipe.batch, recipe.steps, seed, n_scenes, latents.shape[1], scheduler.config.num_train_timesteps
    )
    minutes = train(denoiser, recipe, batches, loss, out / "diffusion.safetensors", preview)
    denoiser.release()
    model.eval()
    return minutes


def sd_job(autoencoder: Recipe, prompts: Recipe, diffusion: Recipe, n_scenes: int = SCENES) -> Job:
    """The job that trains toy_sd by these recipes on the latents of `n_scenes` scenes."""

    def train_all(model: ToySD, out: Path, seed: int, preview: Callable[[], None]) -> dict[str, float]:
        return {
            "autoencoder": train_autoencoder(model, autoencoder, seed, out / "autoencoder.safetensors"),
            "prompts": train_prompts(model, prompts, seed, out / "prompts.safetensors"),
            "diffusion": train_diffusion(model, diffusion, seed, out, preview, n_scenes),
        }

    return Job(
        name="toy_sd", build=build_model, train=train_all, store=save_folder, measure=measure,
        stages={"autoencoder": autoencoder, "prompts": prompts, "diffusion": diffusion},
        notes={
            "kl_weight": KL_WEIGHT, "square_weight": SQUARE_WEIGHT, "label_weight": LABEL_WEIGHT, "scenes": n_scenes,
        },
    )  # fmt: skip


TOY_SD = sd_job(
    Recipe(steps=5000, batch=8, lr=2e-3, warmup=50, flatten=True, average=0.998),
    Recipe(steps=300, batch=64, lr=2e-3, warmup=40),
    Recipe(steps=2600, batch=64, lr=2e-3, warmup=100, flatten=True, average=0.998),
)
