"""BLIP's question answering model through transformers (also the shapes world's `toy_blip`, which is of its class).

A vision tower; a question encoder that reads the finished image in every layer by cross-attention; an answer decoder
that reads the finished question in the same way. A record is a pair view `[h_v ; h_t]` of the vision tower and the
question encoder at the same relative depth. The text towers are post-norm: `resid_post` is normalised, and what a
module adds (`attn_out`, `cross_attn_out`, `mlp_out`) is the output of its last linear map, whose input the heads are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BlipForQuestionAnswering, BlipProcessor, GenerationConfig
from transformers.utils import logging as transformers_logging

from cmma.data.samples import Sample
from cmma.errors import CmmaError, ConfigError
from cmma.modality import Modality
from cmma.models.base import Batch, MultimodalModel, Records
from cmma.models.blip_architectures import architecture, build_config, build_processor
from cmma.models.pair_views import pair_sites, pair_views
from cmma.models.sites import AttentionRow, Port, RecordSite, SiteRow, expand, expand_attention, resolve
from cmma.models.spec import ModelSpec
from cmma.models.weights import drawing, from_transformers, torch_dtype

ROOTS = {
    "vision": ("vision_model",),
    "text": ("text_encoder",),
    "decoder": ("text_decoder.bert", "text_decoder"),
}
_TEXT_SITES: tuple[tuple[str, str, Port], ...] = (
    ("embed", "embeddings", "output"),
    ("layers.{l}.resid_pre", "encoder.layer.{l}", "input"),
    ("layers.{l}.heads", "encoder.layer.{l}.attention.output.dense", "input"),
    ("layers.{l}.attn_out", "encoder.layer.{l}.attention.output.dense", "output"),
    ("layers.{l}.cross_heads", "encoder.layer.{l}.crossattention.output.dense", "input"),
    ("layers.{l}.cross_attn_out", "encoder.layer.{l}.crossattention.output.dense", "output"),
    ("layers.{l}.mlp_out", "encoder.layer.{l}.output.dense", "output"),
    ("layers.{l}.resid_post", "encoder.layer.{l}", "output"),
)
SITES = (
    SiteRow("vision.embed", "vision", "embeddings"),
    SiteRow("vision.layers.{l}.resid_pre", "vision", "encoder.layers.{l}", "input"),
    SiteRow("vision.layers.{l}.heads", "vision", "encoder.layers.{l}.self_attn.projection", "input"),
    SiteRow("vision.layers.{l}.attn_out", "vision", "encoder.layers.{l}.self_attn"),
    SiteRow("vision.layers.{l}.mlp_out", "vision", "encoder.layers.{l}.mlp"),
    SiteRow("vision.layers.{l}.resid_post", "vision", "encoder.layers.{l}"),
    # What the question encoder reads. The module runs once more, on CLS alone, for a pooled output that nothing uses.
    SiteRow("vision.norm", "vision", "post_layernorm"),
    *(
        SiteRow(f"{tower}.{name}", tower, path, port)
        for tower in ("text", "decoder")
        for name, path, port in _TEXT_SITES
    ),
)
_SELF, _CROSS = "encoder.layer.{l}.attention.self", "encoder.layer.{l}.crossattention.self"
ATTENTION = (  # the vision tower's takes no mask
    AttentionRow("text", "text", _SELF),
    AttentionRow("text", "vision", _CROSS, mask="encoder_attention_mask"),
    AttentionRow("decoder", "decoder", _SELF, causal=True),
    AttentionRow("decoder", "text", _CROSS, mask="encoder_attention_mask"),
)
HUB_FILES = ("*.json", "*.safetensors", "vocab.txt")


def load(spec: ModelSpec, device: str = "cpu", dtype: str = "float32") -> BlipModel:
    """Load a BLIP from the hub, a folder, or at random (see `cmma.models.load_model`)."""
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch_dtype(dtype), "attn_implementation": "eager"}  # BLIP has no other
    if spec.weights == "random":
        sizes = architecture(spec.architecture)
        with drawing(spec, device):
            module: Any = BlipForQuestionAnswering._from_config(build_config(sizes), **options)
        processor: Any = build_processor(sizes)
    else:
        module, processor = from_transformers(
            spec, BlipForQuestionAnswering, BlipProcessor, HUB_FILES, "BLIP", **options)
    return BlipModel(spec, module.to(device), processor)


class BlipModel(MultimodalModel):
    """A BLIP with its processor. See `MultimodalModel` for the interface.

    `n_layers` is the depth of the question encoder. There is no caption: `spec.prompt` is empty, and every sample needs
    a question.
    """

    kind = "generative"
    streams = ("text", "vision", "decoder")
    answer_stream = "decoder"
    image_site = "vision.norm"
    unreached = {"text": ("vision",), "decoder": ("vision", "text")}  # noqa: RUF012
    streams_apart = False

    def __init__(self, spec: ModelSpec, module: nn.Module, processor: BlipProcessor) -> None:
        self.processor: Any = processor
        self.tokenizer: Any = self.processor.tokenizer
        self.config: Any = module.config
        roots: dict[str, Any] = {root: resolve(module, paths, root) for root, paths in ROOTS.items()}
        self.depths = {"vision": len(roots["vision"].encoder.layers)}
        self.depths |= {tower: len(roots[tower].encoder.layer) for tower in ("text", "decoder")}
        attentions = expand_attention(ATTENTION, roots, self.depths)
        super().__init__(spec, module, expand(SITES, roots, self.depths), self.depths["text"], attentions)
        for layer in roots["decoder"].encoder.layer:
            layer.crossattention.self.register_forward_pre_hook(_keep_mask, with_kwargs=True)

    def entry(self, site: str) -> nn.Module:
        """The tower of the site: generation calls each tower on its own."""
        module = self.module
        towers = {"vision": module.vision_model, "text": module.text_encoder, "decoder": module.text_decoder}
        return towers[site.split(".")[0]]

    def __call__(self, **batch: Any) -> Any:
        """One forward pass; the answer decoder's output, `logits` Float[B, A, V] after every answer token."""
        outputs: list[Any] = []
        handle = self.module.text_decoder.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            self.module(**batch)
        finally:
            handle.remove()
        return outputs[0]

    def n_heads(self, site: str) -> int:
        """See `MultimodalModel.n_heads`."""
        tower = self.config.vision_config if site.startswith("vision.") else self.config.text_config
        return tower.num_attention_heads

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as it follows the decoder's start token."""
        return self.tokenizer(answer, add_special_tokens=False)["input_ids"]

    def collate(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        padding: Literal["right", "left"] = "right",
    ) -> Batch:
        """See `MultimodalModel.collate`. A question's positions count from its start: it is padded on the right always.

        Raises:
            ConfigError: a sample without a question.
        """
        questions = list(texts) if texts is not None else [self.spec.prompt] * len(samples)
        if not all(questions):
            key = samples[questions.index("")].key
            raise ConfigError(
                f"{self.spec.name} answers questions and writes no captions, and sample {key!r} comes without a "
                "question; take data with questions (meta['questions']) and text=question"
            )
        inputs = self.processor(
            images=[sample.image for sample in samples], text=questions, padding=True, padding_side="right",
            return_tensors="pt",
        )  # fmt: skip
        replies = [[self.config.text_config.bos_token_id, *self.answer_ids(a)] for a in answers or [""] * len(samples)]
        decoder_BA = pad_sequence(
            [torch.tensor(ids) for ids in replies], batch_first=True, padding_value=self.config.text_config.pad_token_id
        )
        column_A = torch.arange(decoder_BA.shape[1])
        answer_BA = (column_A > 0) & (column_A < torch.tensor([len(ids) for ids in replies])[:, None])
        tensors = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        tensors["pixel_values"] = tensors["pixel_values"].to(self.dtype)
        tensors["decoder_input_ids"] = decoder_BA
        return Batch(tensors, inputs["attention_mask"].sum(dim=1) - 1, answer_BA).to(self.device)

    def token_modality(self, batch: Mapping[str, Tensor]) -> Tensor:
        """TEXTUAL for the question with its two marks, DROPPED for padding."""
        ids_BT = batch.get("input_ids")
        if ids_BT is None:
            raise CmmaError(f"{self.spec.name}: modalities are read from input_ids, which this forward pass lacks")
        return self._textual(ids_BT)

    def _textual(self, ids_BT: Tensor) -> Tensor:
        kept_BT = ids_BT != self.config.text_config.pad_token_id
        return torch.where(kept_BT, int(Modality.TEXTUAL), int(Modality.DROPPED)).to(torch.int8)

    def site_modality(self, site: str, batch: Mapping[str, Tensor], rows: int, length: int) -> Tensor:
        """All VISUAL in the vision tower; TEXTUAL but for padding in the question encoder and the answer decoder."""
        tower = site.split(".")[0]
        if tower == "vision":
            return torch.full((rows, length), int(Modality.VISUAL), dtype=torch.int8, device=self.device)
        if tower == "decoder":
            return self._textual(batch.get("decoder_input_ids", batch["input_ids"]))
        return self.token_modality(batch)

    def record_sites(self, layer: int) -> tuple[RecordSite, ...]:
        """The residual streams of vision tower and question encoder at relative depth (layer + 1) / n_layers."""
        widths = {"vision": self.config.vision_config.hidden_size, "text": self.config.text_config.hidden_size}
        return pair_sites(layer, self.n_layers, self.depths, widths)

    def records(self, acts: Mapping[str, Tensor], batch: Mapping[str, Tensor], layer: int) -> Records:
        """Visual views of all image tokens, textual views of all question tokens, a joint view [CLS ; first token]."""
        seen, read = self.record_sites(layer)
        text_modality_BT = self.token_modality(batch)
        pooled_B = torch.zeros(len(text_modality_BT), dtype=torch.long, device=text_modality_BT.device)
        return pair_views(acts[seen.site], acts[read.site], text_modality_BT, pooled_B)

    def pooled_position(self, batch: Batch, modality: Modality) -> Tensor:
        """CLS of the image, and the first token of the question, which sums it up as BERT's does."""
        return torch.zeros_like(batch.prompt_end)

    def image_grid(self, batch: Mapping[str, Tensor], layer: int | None = None) -> tuple[int, int]:
        """Patches of the vision tower: 24 × 24 for the published model."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        return side, side

    def image_positions(self, batch: Mapping[str, Tensor], layer: int | None = None) -> Tensor:
        """All image tokens but CLS."""
        rows, columns = self.image_grid(batch)
        return torch.arange(1, rows * columns + 1, device=self.device).expand(len(batch["pixel_values"]), -1)

    def prompt_logits(self, batch: Batch) -> Tensor:
        """Logits of the answer's first token, Float[B, vocabulary]."""
        return self(**batch).logits[:, 0]

    def answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """See `MultimodalModel.answer_logits`: the decoder's columns."""
        return self(**batch).logits[:, :-1], batch["decoder_input_ids"][:, 1:], batch.answer_mask[:, 1:]

    def logit_lens(self, states: Tensor) -> Tensor:
        """The answer decoder's prediction head; its states are normalised already."""
        return self.module.text_decoder.cls(states)

    def generate(self, batch: Batch, max_new_tokens: int, **options: Any) -> list[str]:
        """Greedy answer to each question, decoded and stripped.

        As transformers' own `generate`, but for the padding of shorter questions, which that one lets the answer see.

        Args:
            batch: questions without answers.
            max_new_tokens: upper limit per sample.
            options: fields of transformers' `GenerationConfig` that differ from greedy decoding.
        """
        if batch.answer_mask.any():
            raise CmmaError("generate needs questions without answers")
        text = self.config.text_config
        settings = {
            "do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": text.pad_token_id,
            "eos_token_id": text.sep_token_id, "bos_token_id": text.bos_token_id,
        }  # fmt: skip
        image_BPV = self.module.vision_model(pixel_values=batch["pixel_values"]).last_hidden_state
        question_BTD = self.module.text_encoder(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], encoder_hidden_states=image_BPV
        ).last_hidden_state
        tokens = self.module.text_decoder.generate(
            input_ids=batch["decoder_input_ids"], encoder_hidden_states=question_BTD,
            encoder_attention_mask=batch["attention_mask"], generation_config=GenerationConfig(**(settings | options)),
        )  # fmt: skip
        return [answer.strip() for answer in self.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)]


def _keep_mask(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give cross-attention the mask of the question's padding, which transformers' layer passes under a wrong name.

    Without it an answer depends on the other questions of its batch. One question alone has no padding to mask.
    """
    kwargs.setdefault("encoder_attention_mask", kwargs.get("attention_mask"))
    return args, kwargs
