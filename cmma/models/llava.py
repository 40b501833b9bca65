"""LLaVA-1.5 and LLaVA-NeXT through transformers (also the shapes world's `toy_llava`, which is of the same class).

The language model's residual stream holds image tokens (projected patches at `<image>` placeholders) and text tokens.
LLaVA-1.5 has one token per patch; LLaVA-NeXT has the patches of the whole image, then those of unpadded tiles with a
learned newline token after each row, so their number varies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig, ProcessorMixin
from transformers.utils import logging as transformers_logging

from cmma.data.samples import Sample
from cmma.errors import CmmaError, DataError
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel, Records
from cmma.models.llava_architectures import architecture, build_config, build_processor
from cmma.models.sites import AttentionRow, RecordSite, SiteRow, expand, expand_attention, resolve
from cmma.models.spec import ModelSpec
from cmma.models.weights import drawing, from_transformers, torch_dtype

ROOTS = {
    "language": ("model.language_model", "language_model.model", "language_model"),
    "vision": ("model.vision_tower.encoder", "model.vision_tower.vision_model.encoder", "vision_tower.encoder"),
    "projector": ("model.multi_modal_projector", "multi_modal_projector"),
}
SITES = (
    SiteRow("vision.layers.{l}.attn_out", "vision", "layers.{l}.self_attn"),
    SiteRow("vision.layers.{l}.mlp_out", "vision", "layers.{l}.mlp"),
    SiteRow("vision.layers.{l}.resid_post", "vision", "layers.{l}"),
    SiteRow("projector.out", "projector", ""),
    SiteRow("language.embed", "language", "layers.0", "input"),  # after the image tokens were put in
    SiteRow("language.layers.{l}.resid_pre", "language", "layers.{l}", "input"),
    SiteRow("language.layers.{l}.attn_in", "language", "layers.{l}.input_layernorm", "input"),
    SiteRow("language.layers.{l}.mlp_in", "language", "layers.{l}.post_attention_layernorm", "input"),
    SiteRow("language.layers.{l}.heads", "language", "layers.{l}.self_attn.o_proj", "input"),
    SiteRow("language.layers.{l}.attn_out", "language", "layers.{l}.self_attn"),
    SiteRow("language.layers.{l}.mlp_out", "language", "layers.{l}.mlp"),
    SiteRow("language.layers.{l}.resid_post", "language", "layers.{l}"),
    SiteRow("language.norm", "language", "norm"),
)
ATTENTION = (AttentionRow("language", "language", "layers.{l}.self_attn", projection="o_proj", causal=True),)
HUB_FILES = ("*.json", "*.jinja", "*.safetensors", "*.model")
IMAGE_INPUTS = ("pixel_values", "image_sizes")


def load(spec: ModelSpec, device: str = "cpu", dtype: str = "float32") -> LlavaModel:
    """Load a LLaVA from the hub, a folder, or at random (see `cmma.models.load_model`)."""
    transformers_logging.disable_progress_bar()
    options = {"dtype": torch_dtype(dtype), "attn_implementation": spec.attention}
    if spec.weights == "random":
        arch = architecture(spec.architecture)
        with drawing(spec, device):
            module: Any = AutoModelForImageTextToText.from_config(build_config(arch), **options)
        processor: Any = build_processor(arch)
    else:
        module, processor = from_transformers(
            spec, AutoModelForImageTextToText, AutoProcessor, HUB_FILES, "LLaVA", **options)
    return LlavaModel(spec, module.to(device), processor)


class LlavaModel(MultimodalModel):
    """A LLaVA with its processor. See `MultimodalModel` for the interface.

    Vision sites reach up to the layer whose output is projected: later layers of the tower have no effect. Their
    rows, and those of `projector.out`, are images (LLaVA-1.5) or image tiles (LLaVA-NeXT).
    """

    kind = "generative"
    streams = ("language",)
    answer_stream = "language"
    image_site = "projector.out"
    prefix_stream = "language"

    def __init__(self, spec: ModelSpec, module: nn.Module, processor: ProcessorMixin) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        self.config: Any = module.config
        if processor.chat_template is None:
            raise DataError(f"{spec.name}: the processor has no chat template; add chat_template.jinja to its folder")
        roots: dict[str, Any] = {root: resolve(module, paths, root) for root, paths in ROOTS.items()}
        depths = {"language": len(roots["language"].layers), "vision": _projected_depth(module.config)}
        attentions = expand_attention(ATTENTION, roots, depths)
        super().__init__(spec, module, expand(SITES, roots, depths), depths["language"], attentions)

    def prompt(self, text: str) -> str:
        """The full prompt: `text` as a user's turn after an image, in the chat template, up to the answer."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)

    def n_heads(self, site: str) -> int:
        """See `MultimodalModel.n_heads`; those of the language model."""
        return self.config.get_text_config().num_attention_heads

    def after_prefix(self, batch: Batch, start: int) -> Batch:
        """The columns from `start` of a batch without padding and, its image being in the prefix, without images."""
        tokens = {"input_ids": batch["input_ids"][:, start:]}
        return Batch(tokens, batch.prompt_end - start, batch.answer_mask[:, start:])

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as it follows the prompt."""
        return self.tokenizer(answer, add_special_tokens=False)["input_ids"]

    def collate(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        padding: Literal["right", "left"] = "right",
    ) -> Batch:
        """See `MultimodalModel.collate`; `texts` defaults to `spec.prompt` for every sample."""
        prompts = [self.prompt(text) for text in texts or [self.spec.prompt] * len(samples)]
        begun = bool(self.tokenizer.bos_token) and prompts[0].startswith(self.tokenizer.bos_token)
        inputs = self.processor(
            images=[sample.image for sample in samples],
            text=prompts,
            padding=True,
            add_special_tokens=not begun,
            return_tensors="pt",
        )
        prompt_ids = [ids[kept.bool()] for ids, kept in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        answer_ids = [torch.tensor(self.answer_ids(answer)).long() for answer in answers or [""] * len(samples)]
        rows = [torch.cat(pair) for pair in zip(prompt_ids, answer_ids, strict=True)]

        def pad(rows: list[Tensor], fill: int) -> Tensor:
            return pad_sequence(rows, batch_first=True, padding_value=fill, padding_side=padding)

        present_BS = pad([torch.ones_like(row) for row in rows], 0)
        answer_BS = pad([torch.arange(len(row)) >= len(ids) for row, ids in zip(rows, prompt_ids, strict=True)], False)
        prompt_end_B = ((present_BS.bool() & ~answer_BS) * torch.arange(present_BS.shape[1])).amax(dim=1)
        tensors = {"input_ids": pad(rows, self.pad_id), "attention_mask": present_BS}
        tensors |= {name: inputs[name] for name in IMAGE_INPUTS if name in inputs}
        tensors["pixel_values"] = tensors["pixel_values"].to(self.dtype)
        return Batch(tensors, prompt_end_B, answer_BS).to(self.device)

    @property
    def pad_id(self) -> int:
        """Id that fills padded positions (they are masked, so any id serves where the tokenizer names none)."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0

    def token_modality(self, batch: Mapping[str, Tensor]) -> Tensor:
        """VISUAL at image placeholders, TEXTUAL elsewhere, DROPPED at padding, BOS and (`spec`) before the image."""
        ids_BS = batch.get("input_ids")
        if ids_BS is None:
            raise CmmaError(f"{self.spec.name}: modalities are read from input_ids, which this forward pass lacks")
        visual_BS = torch.eq(ids_BS, self.config.image_token_id)
        dropped_BS = torch.zeros_like(visual_BS)
        if self.tokenizer.bos_token_id is not None:
            dropped_BS |= ids_BS == self.tokenizer.bos_token_id
        mask = batch.get("attention_mask")
        if mask is not None and mask.ndim == 2:  # while decoding the mask is as long as the cache
            dropped_BS |= mask[:, -ids_BS.shape[1] :] == 0
        if self.spec.drop_system_prompt:
            seen_BS = visual_BS.cumsum(1) > 0
            dropped_BS |= ~seen_BS & seen_BS[:, -1:]
        modality_BS = torch.where(visual_BS, int(Modality.VISUAL), int(Modality.TEXTUAL))
        return modality_BS.masked_fill(dropped_BS, int(Modality.DROPPED)).to(torch.int8)

    def site_modality(self, site: str, batch: Mapping[str, Tensor], rows: int, length: int) -> Tensor:
        """The language stream's token modalities; all VISUAL in the vision tower and the projector."""
        if site.startswith("language."):
            return self.token_modality(batch)
        return torch.full((rows, length), int(Modality.VISUAL), dtype=torch.int8, device=self.device)

    def record_sites(self, layer: int) -> tuple[RecordSite, ...]:
        """One record per token of the residual stream after block `layer`."""
        site = self.site(f"language.layers.{layer}.resid_post")
        return (RecordSite(site.name, None, 0, self.config.get_text_config().hidden_size),)

    def records(self, acts: Mapping[str, Tensor], batch: Mapping[str, Tensor], layer: int) -> Records:
        """The stream itself: no copy is made."""
        vectors_BSD = acts[self.record_sites(layer)[0].site]
        position_S = torch.arange(vectors_BSD.shape[1], device=vectors_BSD.device)
        return Records(vectors_BSD, self.token_modality(batch), position_S.expand(vectors_BSD.shape[:2]))

    def pooled_position(self, batch: Batch, modality: Modality) -> Tensor:
        """The last prompt token, where the answer is decided, for either modality."""
        return batch.prompt_end

    def image_grid(self, batch: Mapping[str, Tensor], layer: int | None = None) -> tuple[int, int]:
        """Patches of the vision tower's input: 24 × 24 for the published models."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return side, side

    def image_positions(self, batch: Mapping[str, Tensor], layer: int | None = None) -> Tensor:
        """Stream positions of the whole image's patches: the first image tokens (in LLaVA-NeXT tiles follow)."""
        rows, columns = self.image_grid(batch)
        start_B = torch.eq(batch["input_ids"], self.config.image_token_id).int().argmax(dim=1)
        return start_B[:, None] + torch.arange(rows * columns, device=start_B.device)

    def prompt_logits(self, batch: Batch) -> Tensor:
        """Logits after the prompt, Float[B, vocabulary], from one forward pass that computes no others."""
        positions, which_B = batch.prompt_end.unique(return_inverse=True)
        logits_BPV = self(**batch, logits_to_keep=positions).logits
        return logits_BPV[torch.arange(len(which_B), device=logits_BPV.device), which_B]

    def answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """See `MultimodalModel.answer_logits`: the columns after the shortest prompt, and no other logits."""
        start, stop = int(batch.prompt_end.min()), batch["input_ids"].shape[1] - 1
        columns = torch.arange(start, stop, device=batch["input_ids"].device)
        logits_BCV = self(**batch, logits_to_keep=columns).logits
        return logits_BCV, batch["input_ids"][:, start + 1 :], batch.answer_mask[:, start + 1 :]

    def unembedding(self) -> Tensor:
        """The language model's output embedding (the final norm left out)."""
        return self.module.get_output_embeddings().weight

    def logit_lens(self, states: Tensor) -> Tensor:
        """Final norm and output embedding (nostalgebraist 2020)."""
        return self.module.get_output_embeddings()(self.site("language.norm").module(states))

    def answer_log_probs(self, batch: Batch) -> Tensor:
        """Log-probability of every teacher-forced answer token given all before it, Float[B, S]; 0 elsewhere."""
        log_p_BSV = self(**batch).logits[:, :-1].float().log_softmax(dim=-1)
        log_p_BS = log_p_BSV.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return nn.functional.pad(log_p_BS, (1, 0)).masked_fill(~batch.answer_mask, 0)

    def generate(self, batch: Batch, max_new_tokens: int, **options: Any) -> list[str]:
        """Greedy continuation of each prompt, decoded and stripped.

        Args:
            batch: prompts without answers, padded on the left.
            max_new_tokens: upper limit per sample.
            options: fields of transformers' `GenerationConfig` that differ from greedy decoding.
        """
        if not batch["attention_mask"][:, -1].all() or batch.answer_mask.any():
            raise CmmaError("generate needs prompts without answers, collated with padding='left'")
        stop = self.module.generation_config.eos_token_id
        settings = {
            "do_sample": False,
            "max_new_tokens": max_new_tokens,
            "pad_token_id": self.pad_id,
            "eos_token_id": self.tokenizer.eos_token_id if stop is None else stop,
        }
        tokens = self.module.generate(**batch, generation_config=GenerationConfig(**(settings | options)))
        new = tokens[:, batch["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]


def _projected_depth(config: Any) -> int:
    """Number of vision blocks before the (last) projected hidden state; hidden state 0 is the embedding."""
    chosen = config.vision_feature_layer
    chosen = [chosen] if isinstance(chosen, int) else chosen
    states = config.vision_config.num_hidden_layers + 1
    return max(index % states for index in chosen)
