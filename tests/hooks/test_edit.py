"""Edit and Trace: phases, token selection, order, release, padding."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cmma.data.samples import Sample
from cmma.errors import CmmaError, ConfigError
from cmma.hooks import Edit, TokenEdit, Trace, Where, splice
from cmma.modality import Modality
from cmma.models import load_model
from cmma.models.base import MultimodalModel
from cmma.models.spec import ModelSpec

ARCHITECTURES = {"llava-tiny": "llava", "llava-next-tiny": "llava", "clip-tiny": "clip"}
SITE = "language.layers.2.resid_post"


def picture(seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (48, 60, 3), dtype=torch.uint8, generator=generator).numpy())


SAMPLES = [Sample(str(i), picture(i), "a red circle and a cross") for i in range(2)]
QUESTIONS = ["Is it red?", "How many shapes are there in the picture?"]


@pytest.fixture(scope="module")
def models() -> dict[str, MultimodalModel]:
    fields = {"weights": "random", "source": "", "n_layers": 4}
    return {
        name: load_model(ModelSpec(name=name, family=family, architecture=name, **fields))
        for name, family in ARCHITECTURES.items()
    }


@pytest.fixture(scope="module")
def llava(models):
    return models["llava-tiny"]


def output(model: MultimodalModel, batch) -> Tensor:
    return model.prompt_logits(batch) if model.kind == "generative" else torch.stack(model.embeddings(model(**batch)))


def identity(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
    return acts_ND


def zero(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
    return torch.zeros_like(acts_ND)


def hooks(model: MultimodalModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_every_site_carries_what_the_output_depends_on(models, name):
    """Zeroing any listed site changes the output; handing its activations back changes not one bit."""
    model = models[name]
    batch = model.collate(SAMPLES)
    clean = output(model, batch)
    for site in model.site_names():
        with Edit(model, site, TokenEdit(zero, tokens="every")):
            assert not torch.equal(output(model, batch), clean), site
        with Edit(model, site, TokenEdit(identity, tokens="every")):
            assert torch.equal(output(model, batch), clean), site


@torch.no_grad()
def test_a_trace_sees_what_flows_on_after_all_edits(llava):
    batch = llava.collate(SAMPLES)
    edit = TokenEdit(lambda acts_ND, *_: acts_ND + 1, tokens="every")
    with Trace(llava, [SITE]) as plain:
        llava(**batch)
    with Trace(llava, [SITE]) as outer, Edit(llava, SITE, edit), Trace(llava, [SITE]) as inner:
        llava(**batch)
    assert torch.equal(outer[SITE], plain[SITE] + 1)
    assert torch.equal(inner[SITE], plain[SITE] + 1)


@torch.no_grad()
def test_nested_edits_apply_in_the_order_of_entry(llava):
    batch = llava.collate(SAMPLES)
    double = TokenEdit(lambda acts_ND, *_: acts_ND * 2, tokens="every")
    add = TokenEdit(lambda acts_ND, *_: acts_ND + 1, tokens="every")
    with Trace(llava, [SITE]) as plain:
        llava(**batch)
    with Edit(llava, SITE, double), Edit(llava, SITE, add), Trace(llava, [SITE]) as acts:
        llava(**batch)
    assert torch.equal(acts[SITE], plain[SITE] * 2 + 1)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("all", lambda modality: modality >= 0),
        ("every", lambda modality: modality >= -1),
        ("visual", lambda modality: modality == Modality.VISUAL),
        ("textual", lambda modality: modality == Modality.TEXTUAL),
    ],
)
@torch.no_grad()
def test_only_the_selected_tokens_are_written(llava, tokens, expected):
    batch = llava.collate(SAMPLES, QUESTIONS)
    with Trace(llava, [SITE]) as plain:
        llava(**batch)
    with Edit(llava, SITE, TokenEdit(zero, tokens=tokens)), Trace(llava, [SITE]) as acts:
        llava(**batch)
    assert torch.equal((acts[SITE] == 0).all(-1), expected(llava.token_modality(batch)))
    assert torch.equal((acts[SITE] == plain[SITE]).all(-1), ~expected(llava.token_modality(batch)))


@torch.no_grad()
def test_positions_and_masks_select_columns(llava):
    batch = llava.collate(SAMPLES, QUESTIONS, padding="left")
    length = batch["input_ids"].shape[1]
    mask = torch.zeros(2, length, dtype=torch.bool)
    mask[1, 5] = mask[0, length - 1] = True
    for tokens, rows, columns in (
        ([3, -1], [0, 0, 1, 1], [3, length - 1] * 2),
        (torch.tensor([4]), [0, 1], [4, 4]),
        (mask, [0, 1], [length - 1, 5]),
    ):
        with Edit(llava, SITE, TokenEdit(zero, tokens=tokens)), Trace(llava, [SITE]) as acts:
            llava(**batch)
        assert (acts[SITE] == 0).all(-1).nonzero().T.tolist() == [rows, columns]


def test_generation_passes_the_prompt_then_one_token_at_a_time(llava):
    """Phases, steps and absolute columns, over a left-padded batch of unequal prompts."""
    batch = llava.collate(SAMPLES, QUESTIONS, padding="left")
    length = batch["input_ids"].shape[1]
    seen: dict[str, list[tuple[int, int, list[int]]]] = {phase: [] for phase in ("all", "prefill", "decode")}

    def note(phase: str) -> TokenEdit:
        def fn(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
            assert bool((modality_N >= 0).all())
            seen[phase].append((where.step, len(acts_ND), where.position.unique().tolist()))
            return acts_ND

        return TokenEdit(fn, phase=phase)

    with ExitStack() as stack:
        acts = stack.enter_context(Trace(llava, [SITE]))
        for phase in seen:
            stack.enter_context(Edit(llava, SITE, note(phase)))
        llava.generate(batch, 4, eos_token_id=None)
    assert [step.shape[1] for step in acts.steps[SITE]] == [length, 1, 1, 1]
    records = int((llava.token_modality(batch) >= 0).sum())
    assert seen["prefill"] == [(0, records, list(range(1, length)))]
    assert seen["decode"] == [(t, 2, [length + t - 1]) for t in (1, 2, 3)]
    assert seen["all"] == seen["prefill"] + seen["decode"]


def test_visual_edits_do_nothing_while_decoding(llava):
    batch = llava.collate(SAMPLES, QUESTIONS, padding="left")
    steps: list[int] = []

    def fn(acts_ND: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        assert set(modality_N.tolist()) == {Modality.VISUAL}
        steps.append(where.step)
        return acts_ND

    with Edit(llava, SITE, TokenEdit(fn, tokens="visual")):
        llava.generate(batch, 3)
    assert steps == [0]


@torch.no_grad()
def test_edits_are_released_also_by_exceptions(llava):
    batch = llava.collate(SAMPLES)
    clean, before = output(llava, batch), hooks(llava)

    def fail(*_):
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), Trace(llava, [SITE]), Edit(llava, SITE, TokenEdit(fail)):
        llava(**batch)
    with Edit(llava, SITE, TokenEdit(zero)), Edit(llava, "language.layers.0.heads", TokenEdit(zero)):
        llava(**batch)
    assert hooks(llava) == before
    assert torch.equal(output(llava, batch), clean)


@torch.no_grad()
def test_edits_act_alike_under_padding_on_either_side(llava):
    edit = TokenEdit(lambda acts_ND, *_: acts_ND * 0.5, tokens="textual")
    with Edit(llava, SITE, edit):
        left, right = (
            llava.prompt_logits(llava.collate(SAMPLES, QUESTIONS, padding=side)) for side in ("left", "right")
        )
        alone = [llava.prompt_logits(llava.collate([s], [q])) for s, q in zip(SAMPLES, QUESTIONS, strict=True)]
    torch.testing.assert_close(left, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(right, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_edits_and_undetached_traces(llava):
    batch = llava.collate(SAMPLES[:1])
    scale = nn.Parameter(torch.ones(()))
    with Edit(llava, SITE, TokenEdit(lambda acts_ND, *_: acts_ND * scale)), Trace(llava, [SITE], detach=False) as acts:
        llava.prompt_logits(batch).logsumexp(-1).sum().backward()
    assert scale.grad.abs() > 0
    assert acts[SITE].requires_grad


@torch.no_grad()
def test_a_stopping_trace_reads_the_same_and_skips_the_rest(llava):
    batch = llava.collate(SAMPLES)
    with Trace(llava, [SITE, "projector.out"]) as whole:
        llava(**batch)
    with Trace(llava, ["language.norm"]) as above, Trace(llava, [SITE, "projector.out"], stop=True) as acts:
        llava(**batch)
    assert all(torch.equal(acts[site], whole[site]) for site in acts)
    assert above.steps["language.norm"] == []
    with pytest.raises(CmmaError, match=r"no forward pass went through language\.norm"):
        above["language.norm"]


@torch.no_grad()
def test_splice_writes_each_tower_from_its_own_half(models):
    """An edit on pair views of a dual encoder equals two edits, one per tower."""
    model = models["clip-tiny"]
    batch = model.collate(SAMPLES)
    vision, text = model.record_sites(1)
    shift = torch.randn(model.record_width(1), generator=torch.Generator().manual_seed(0))

    def fn(records_NR: Tensor, modality_N: Tensor, where: Where) -> Tensor:
        other = slice(vision.width, None) if modality_N[0] == Modality.VISUAL else slice(0, vision.width)
        assert not records_NR[:, other].any()
        return records_NR + shift

    sites = [vision.site, text.site]
    with Trace(model, sites) as plain:
        model(**batch)
    with splice(model, 1, TokenEdit(fn)), Trace(model, sites) as acts:
        model(**batch)
    torch.testing.assert_close(acts[vision.site], plain[vision.site] + shift[: vision.width])
    read = model.token_modality(batch) == Modality.TEXTUAL
    torch.testing.assert_close(acts[text.site][read], plain[text.site][read] + shift[vision.width :])
    assert torch.equal(acts[text.site][~read], plain[text.site][~read])


def test_wrong_tokens_phases_and_shapes_are_refused(llava):
    with pytest.raises(ConfigError, match="tokens='image'"):
        TokenEdit(identity, tokens="image")
    with pytest.raises(ConfigError, match="phase='late'"):
        TokenEdit(identity, phase="late")
    with pytest.raises(CmmaError, match="returned"), Edit(llava, SITE, TokenEdit(lambda acts_ND, *_: acts_ND[:, :3])):
        llava(**llava.collate(SAMPLES))
