"""What each attention head of a CLIP image tower adds to the image embedding, exactly.

open_clip's attention is functional (`nn.MultiheadAttention`): a hook on its output projection never fires, so heads are
recomputed from `in_proj_weight`. The final normalisation is linear once its mean and variance are given, so the
embedding is a sum over everything that was written into the stream of the summary token (Gandelsman et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmma.data.samples import Sample
from cmma.errors import ConfigError
from cmma.hooks import Trace


class HeadOutputs(NamedTuple):
    """Contributions to image embeddings before they are normalised; they sum to the embeddings."""

    heads_NLHE: Tensor
    """Of each head of each layer asked for."""
    rest_NE: Tensor
    """Of everything else: embeddings, MLPs, other layers, biases."""


@torch.no_grad()
def head_outputs(
    model: Any, samples: Sequence[Sample], layers: Sequence[int], batch_size: int = 32
) -> HeadOutputs:
    """Contributions of the heads of `layers` to the samples' image embeddings.

    Raises:
        ConfigError: a tower that does not pool its first token.
    """
    tower = model.module.visual
    if getattr(tower, "attn_pool", None) is not None or getattr(tower, "pool_type", "") != "tok":
        raise ConfigError(f"{model.spec.name}: contributions of heads need an image tower that pools its first token")
    sites = [f"vision.layers.{layer}.resid_pre" for layer in layers]
    top = f"vision.layers.{model.depths['vision'] - 1}.resid_post"
    heads, rests = [], []
    for start in range(0, len(samples), batch_size):
        batch = model.collate(samples[start : start + batch_size])
        with Trace(model, [*sites, top, "vision.embed"]) as acts:
            model(**batch)
        summary_BD = acts[top][:, 0]
        deviation_B1 = (summary_BD.var(dim=-1, correction=0, keepdim=True) + tower.ln_post.eps).sqrt()
        written_BLHD = torch.stack([
            _written(tower.transformer.resblocks[layer], acts[site]) for layer, site in zip(layers, sites, strict=True)
        ], dim=1)
        centred_BLHD = written_BLHD - written_BLHD.mean(dim=-1, keepdim=True)
        heads_BLHE = (centred_BLHD / deviation_B1[:, None, None] * tower.ln_post.weight) @ tower.proj
        heads.append(heads_BLHE.cpu())
        rests.append((acts["vision.embed"].flatten(1) - heads_BLHE.sum(dim=(1, 2))).cpu())
    return HeadOutputs(torch.cat(heads), torch.cat(rests))


def _written(block: Any, stream_BSD: Tensor) -> Tensor:
    """What each head writes into the first token's stream, without the projection's bias: Float[B, H, D]."""
    attention = block.attn
    n_heads = attention.num_heads
    projected_BS3D = block.ln_1(stream_BSD) @ attention.in_proj_weight.T + attention.in_proj_bias
    query_BHSd, key_BHSd, value_BHSd = (
        part.unflatten(2, (n_heads, -1)).transpose(1, 2) for part in projected_BS3D.chunk(3, dim=-1)
    )
    weights_BH1S = (query_BHSd[:, :, :1] @ key_BHSd.transpose(2, 3) / query_BHSd.shape[-1] ** 0.5).softmax(dim=-1)
    read_BHd = (weights_BH1S @ value_BHSd)[:, :, 0]
    output_HdD = attention.out_proj.weight.T.unflatten(0, (n_heads, -1))
    return block.ls_1(torch.einsum("bhd,hdm->bhm", read_BHd, output_HdD))
