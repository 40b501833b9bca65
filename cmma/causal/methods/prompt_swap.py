"""prompt_swap: parts of a diffusion model read another prompt; what of it appears in the image is what they carry.

Basu et al. 2023 (arXiv 2310.13730) find one causal state in CLIP's text encoder and a distributed one in the U-Net;
LocoGen (Basu et al. 2024) swaps the prompt embedding into `attn2.to_k` and `attn2.to_v` of windows of cross-attentions.
The two prompts differ in one factor of one scene, and the scene parser says whether the image took it over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cmma.causal.config import TraceConfig
from cmma.causal.findings import Dictionary, Findings
from cmma.console import progress
from cmma.control.scoring import Facts, facts_of_image, judge, shows
from cmma.control.trials import Trial, draw_trials
from cmma.data.samples import Sample
from cmma.errors import ConfigError, DataError
from cmma.figures import HeatMap
from cmma.hooks import Edit, TokenEdit, Trace
from cmma.hooks.prompts import reading
from cmma.models.base import MultimodalModel
from cmma.statistics.bootstrap import bootstrap_mean
from cmma.statistics.correction import benjamini_hochberg
from cmma.statistics.permutation import sign_flip_p
from cmma.testbed.parser import parse_images

TOKENS = ("changed words", "words before the next object", "end and padding", "every token")


def run(
    model: MultimodalModel, samples: Sequence[Sample], config: TraceConfig, dictionary: Dictionary | None = None
) -> Findings:
    """Share of images that take the other prompt's value over, by window of the U-Net and by state of the text encoder.

    Raises:
        ConfigError: the model makes no images. DataError: no image shows the scene of its prompt.
    """
    if model.kind != "diffusion":
        raise ConfigError(f"{model.spec.name} makes no images from prompts; take model=toy_sd")
    swap = _Swap(model, config)
    scenes = [sample for sample in samples if sample.objects]
    rows: list[dict[str, Any]] = []
    width = config.prompt_swap.window or max(1, round(3 * model.n_layers / 16))
    windows = [list(range(start, start + width)) for start in range(model.n_layers - width + 1)]
    with progress("Swapping prompts", total=len(config.prompt_swap.factors)) as bar:
        for factor in config.prompt_swap.factors:
            trials, before = swap.trials(draw_trials(scenes, factor, config.seed))
            if not trials:
                continue
            edited = model.encode_prompts([trial.changed_prompt() for trial in trials])  # type: ignore[attr-defined]
            for blocks in (*windows, list(range(model.n_layers))):
                name = "every block" if len(blocks) == model.n_layers else f"blocks {blocks[0]}–{blocks[-1]}"
                taken = swap.taken(trials, before, edited, blocks)
                rows.append(_row(factor, "unet", name, "every token", taken, config.seed))
            for site in swap.text_sites():
                for group in TOKENS:
                    taken = swap.taken(trials, before, swap.mixed(trials, site, group), None)
                    rows.append(_row(factor, "text encoder", site.removeprefix("text."), group, taken, config.seed))
            bar.advance(1)
    if not rows:
        raise DataError(f"none of the images of {model.spec.name} shows its prompt as a scene; take model=toy_sd")
    table = pd.DataFrame(rows)
    table["q"] = benjamini_hochberg(table["p"])
    unet, text = table[table["part"] == "unet"], table[table["part"] == "text encoder"]
    single = unet[unet["place"] != "every block"]
    return Findings(
        summary={
            "method": config.method, "n": {factor: int(some["n"].max()) for factor, some in table.groupby("factor")},
            "window": width,
            "strongest": {
                str(factor): {"place": best["place"], "value": best["value"]}
                for factor, some in single.groupby("factor") for best in [some.loc[some["value"].idxmax()]]
            },
        },
        tables={"swaps": table},
        figures=(
            _heat_map(unet.assign(column=unet["factor"]), "prompt swap: windows of cross-attention", "window"),
            _heat_map(
                text.assign(column=text["factor"] + ": " + text["tokens"]), "prompt swap: text encoder", "state"),
        ),
    )  # fmt: skip


class _Swap:
    """The images of one run: what is swapped, and whether the image shows it."""

    def __init__(self, model: Any, config: TraceConfig) -> None:
        self.model, self.config, self.options = model, config, config.prompt_swap

    def trials(self, drawn: Sequence[Trial]) -> tuple[list[Trial], list[Facts]]:
        """The first trials whose unedited image shows their scene, and these images."""
        tried = list(drawn[: 2 * self.config.max_samples])
        seen = self._images(tried, lambda some: self._make(some))
        kept = [(trial, facts) for trial, facts in zip(tried, seen, strict=True) if shows(facts, trial)]
        kept = kept[: self.config.max_samples]
        return [trial for trial, _ in kept], [facts for _, facts in kept]

    def taken(
        self, trials: Sequence[Trial], before: Sequence[Facts], text_BSD: Tensor, blocks: Sequence[int] | None
    ) -> np.ndarray:
        """bool[N]: the image shows the other prompt's value when the blocks read `text_BSD`."""
        done = 0

        def make(some: Sequence[Trial]) -> list[Image.Image]:
            nonlocal done
            with reading(self.model, text_BSD[done : done + len(some)], blocks):
                images = self._make(some)
            done += len(some)
            return images

        after = self._images(trials, make)
        return np.array([judge(b, a, trial).success for trial, b, a in zip(trials, before, after, strict=True)])

    def text_sites(self) -> list[str]:
        """The embeddings, and what the first attention and each block leave."""
        blocks = [f"text.layers.{layer}.resid_post" for layer in range(self.model.text_depth)]
        return ["text.embed", "text.layers.0.attn_out", *blocks]

    @torch.no_grad()
    def mixed(self, trials: Sequence[Trial], site: str, group: str) -> Tensor:
        """The encoded prompts, with the other prompt's state at `site` on a group of tokens: Float[B, S, D]."""
        prompts, others = ([text(trial) for trial in trials] for text in (_prompt, Trial.changed_prompt))
        with Trace(self.model, [site]) as acts:
            self.model.encode_prompts(others)
        state_BSD = acts[site]

        def restore(acts_ND: Tensor, modality_N: Tensor, where: Any) -> Tensor:
            return state_BSD[where.batch_index, where.position]

        with Edit(self.model, site, TokenEdit(restore, self._tokens(prompts, others, group))):
            return self.model.encode_prompts(prompts)

    def _tokens(self, prompts: Sequence[str], others: Sequence[str], group: str) -> Tensor:
        """bool[B, S] of a group of `TOKENS`."""
        ids_BS, other_BS = self.model.token_ids(prompts), self.model.token_ids(others)
        changed_BS = ids_BS != other_BS
        position_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        words_BS = position_S < self.model.end_of_text(ids_BS)[:, None]
        match group:
            case "changed words":
                return changed_BS
            case "words before the next object":
                near_BS = torch.stack([changed_BS.roll(step, dims=1) for step in range(1, 5)]).any(dim=0)
                return near_BS & ~changed_BS & words_BS
            case "end and padding":
                return ~words_BS
            case _:
                return torch.ones_like(words_BS)

    def _images(
        self, trials: Sequence[Trial], make: Callable[[Sequence[Trial]], list[Image.Image]]
    ) -> list[Facts]:
        facts: list[Facts] = []
        for start in range(0, len(trials), self.config.rows_per_forward):
            images = make(trials[start : start + self.config.rows_per_forward])
            facts += [facts_of_image(scene) for scene in parse_images(images)]
        return facts

    def _make(self, trials: Sequence[Trial]) -> list[Image.Image]:
        seeds = [trial.noise_seed for trial in trials]
        return self.model.generate_images(
            [_prompt(trial) for trial in trials], seeds, self.options.steps, self.options.guidance)


def _prompt(trial: Trial) -> str:
    return trial.sample.caption


def _row(factor: str, part: str, place: str, tokens: str, taken: np.ndarray, seed: int) -> dict[str, Any]:
    return {
        "factor": factor, "part": part, "place": place, "tokens": tokens,
        **bootstrap_mean(taken, seed=seed).as_dict(), "p": float(sign_flip_p(taken.astype(float), 10_000, seed)),
    }  # fmt: skip


def _heat_map(table: pd.DataFrame, title: str, row_label: str) -> HeatMap:
    rows, columns = (list(dict.fromkeys(table[name])) for name in ("place", "column"))

    def grid(value: str) -> np.ndarray:
        wide = table.pivot(index="place", columns="column", values=value)
        return wide.loc[rows, columns].to_numpy(float)

    return HeatMap(
        title=title, about="share of images that show the other prompt's value", value_RC=grid("value"), rows=rows,
        columns=columns, low_RC=grid("low"), high_RC=grid("high"), row_label=row_label, n=int(table["n"].max()),
    )  # fmt: skip
