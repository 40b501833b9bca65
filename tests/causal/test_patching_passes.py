"""Passes that rows join where they begin to differ, after a kept prefix, against one hooked whole pass per cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmma.causal import passes, patching
from cmma.causal.config import NoiseConfig, TraceConfig
from cmma.causal.corruptions import contrast_runs, noise_runs, single_run
from cmma.causal.modules import head_parts, trace_rows
from cmma.causal.patching import Part, Run, activation_patch
from cmma.causal.queries import caption_pair_contrasts, caption_queries, image_pair_contrasts
from cmma.causal.readout import make_readout
from cmma.causal.tracing import trace
from cmma.errors import ConfigError
from cmma.hooks import Edit, TokenEdit, Trace
from cmma.models import load_model
from cmma.models.spec import ModelSpec


@pytest.fixture(scope="module")
def blip():
    fields = {"family": "blip", "weights": "random", "source": "", "prompt": "", "n_layers": 4}
    return load_model(ModelSpec(name="tiny blip", architecture="blip-tiny", **fields))


@pytest.fixture(scope="module")
def diffusion():
    fields = {"family": "stable_diffusion", "weights": "random", "source": "", "n_layers": 4}
    return load_model(ModelSpec(name="tiny sd", architecture="stable-diffusion-tiny", **fields))


@pytest.fixture(scope="module")
def cases_of(tiny, tiny_clip, blip, diffusion, pairs):
    """Name of a model → it, and two cases: image pairs, or Gaussian noise on the text of a diffusion model."""
    noise = NoiseConfig(draws=1)
    asked, seen = image_pair_contrasts(pairs)[:2], caption_pair_contrasts(pairs)[:2]
    told = [single_run(diffusion, query) for query in caption_queries(pairs[:2])]
    return {
        "llava": (tiny, [contrast_runs(tiny, each) for each in asked]),
        "blip": (blip, [contrast_runs(blip, each) for each in asked]),
        "clip": (tiny_clip, [contrast_runs(tiny_clip, each) for each in seen]),
        "clip text": (tiny_clip, [_other_text(tiny_clip, *each) for each in zip(pairs[:2], pairs[2:4], strict=True)]),
        "sd": (diffusion, [(run, noise_runs(diffusion, run, noise, 1.0, 0)[0]) for run in told]),
    }


def _other_text(model, sample, other):
    """A caption against as many of its words in another order."""
    clean = caption_queries([sample])[0]
    words = clean.text.split()
    return single_run(model, clean), Run(clean, single_run(model, replace(clean, text=" ".join(words[::-1]))).batch)


@torch.no_grad()
def one_pass_per_cell(model, clean, corrupt, parts, where_P, readout):
    """Clean activations written by plain hooks, everything computed."""
    handles = []
    with Trace(model, [part.site for part in parts]) as acts:
        readout(clean.batch, [clean.query])

    def write(part, value):
        first = value[0] if isinstance(value, tuple) else value
        patched = first.clone()
        patched[:, where_P, part.channels] = acts[part.site][:, where_P, part.channels]
        return (patched, *value[1:]) if isinstance(value, tuple) else patched

    for part in parts:
        site = model.site(part.site)
        if site.port == "input":
            hook = lambda _, args, part=part: (write(part, args[0]), *args[1:])  # noqa: E731
            handles.append(site.module.register_forward_pre_hook(hook))
        else:
            handles.append(site.module.register_forward_hook(lambda _, __, out, part=part: write(part, out)))
    edits = [Edit(model, site, edit) for site, edit in corrupt.edits]
    for edit in edits:
        edit.__enter__()
    try:
        return float(readout(corrupt.batch, [corrupt.query]))
    finally:
        for edit in edits:
            edit.__exit__(None, None, None)
        for handle in handles:
            handle.remove()


def as_parts(row):
    return [part if isinstance(part, Part) else Part(part) for part in row]


def compare(model, cases, rows, groups, atol=1e-5, **options):
    """The engine's scores equal hooked ones; some cell differs from the corrupt run."""
    readout = make_readout(model, "auto", "log_probability")
    clean, corrupt = zip(*cases, strict=True)
    found = activation_patch(model, clean, corrupt, rows, [groups] * len(cases), readout, **options)
    expected = np.array([
        [[one_pass_per_cell(model, one, other, as_parts(row), where, readout) for where in groups.values()]
         for row in rows.values()]
        for one, other in cases
    ])  # fmt: skip
    np.testing.assert_allclose(found.score_CRG, expected, atol=atol, rtol=0)
    assert np.abs(expected - found.low_C[:, None, None]).max() > 10 * atol
    return found


MODULES = [
    ("llava", "language", "residual"), ("llava", "language", "mlp"), ("llava", "language", "attention"),
    ("llava", "language", "head"), ("blip", "text", "residual"), ("blip", "text", "mlp"), ("blip", "text", "attention"),
    ("blip", "text", "cross_attention"), ("blip", "text", "cross_head"), ("blip", "vision", "residual"),
    ("blip", "vision", "head"), ("blip", "decoder", "cross_attention"), ("blip", "decoder", "cross_head"),
    ("blip", "decoder", "mlp"), ("clip", "vision", "residual"), ("clip", "vision", "attention"),
    ("clip text", "text", "mlp"), ("sd", "text", "residual"), ("sd", "text", "head"), ("sd", "unet", "residual"),
    ("sd", "unet", "self_attention"), ("sd", "unet", "cross_attention"), ("sd", "unet", "cross_head"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "stream", "module"), MODULES)
def test_every_module_of_every_family_equals_one_hooked_pass_per_cell(cases_of, name, stream, module):
    model, cases = cases_of[name]
    rows = trace_rows(model, stream, TraceConfig(module=module, layers=[1] if stream == "unet" else None))
    rows = dict(list(rows.items())[:: 3 if "head" in module else 1])
    first = 8 if name == "llava" else 1  # inside the image, which a LLaVA's prompt names before
    groups = {"early": torch.tensor([first]), "late": torch.tensor([first + 2, first + 5])}
    if stream == "decoder":
        groups = {"start": torch.tensor([0])}
    compare(model, cases, rows, groups, atol=1e-6 if name == "sd" else 2e-5)  # an error of 0.6, no log-probability


@pytest.mark.parametrize("name", ["llava", "blip", "clip text"])
def test_windows_and_mixed_rows_equal_hooked_passes(cases_of, name):
    """Several sites of a row, the first of them where the row joins; residual streams of two layers."""
    model, cases = cases_of[name]
    tower = f"{model.streams[0]}.layers" if name != "clip text" else "text.layers"
    rows = {
        "mlp window": (f"{tower}.0.mlp_out", f"{tower}.1.mlp_out"),
        "streams": (f"{tower}.0.resid_post", f"{tower}.1.resid_post"),
        "both": (f"{tower}.0.resid_post", f"{tower}.1.attn_out", f"{tower}.1.mlp_out"),
        "input": (f"{tower}.0.resid_pre", f"{tower}.1.resid_pre"),
    }
    compare(model, cases, rows, {"two": torch.tensor([8, 10]), "one": torch.tensor([9])}, atol=2e-5)


def test_cases_of_different_lengths_come_back_in_their_places(tiny, pairs):
    """Cases of one length share passes; alone each has the same scores."""
    cases = [contrast_runs(tiny, each) for each in image_pair_contrasts(pairs)]
    assert len({clean.batch["input_ids"].shape for clean, _ in cases}) > 1
    clean, corrupt = (list(runs) for runs in zip(*cases, strict=True))
    sites = [f"language.layers.{layer}.resid_post" for layer in range(4)]
    groups = [{"a": torch.tensor([8]), "b": torch.tensor([index + 4, 20])} for index in range(len(cases))]
    readout = make_readout(tiny, "log_probability", "log_probability")
    together = activation_patch(tiny, clean, corrupt, sites, groups, readout)
    for index in range(len(cases)):
        alone = activation_patch(tiny, [clean[index]], [corrupt[index]], sites, [groups[index]], readout)
        np.testing.assert_allclose(together.score_CRG[index], alone.score_CRG[0], atol=1e-5)
        assert together.high_C[index] == pytest.approx(alone.high_C[0], abs=1e-5)


def test_only_columns_from_the_first_patch_on_are_computed(tiny, cases_of, monkeypatch):
    """A cell at column 20 of a text stream needs the columns 20 … of the layers above its own, and of no other."""
    _, cases = cases_of["llava"]
    clean, corrupt = cases[0]
    sites = [f"language.layers.{layer}.resid_post" for layer in range(4)]
    seen = {}

    def watched(*args):
        with Trace(tiny, [f"language.layers.{layer}.attn_out" for layer in range(1, 4)]) as acts:
            scores = passes.joined_scores(*args)
        seen.update({site: acts[site].shape[:2] for site in acts})
        return scores

    monkeypatch.setattr(patching, "joined_scores", watched)
    readout = make_readout(tiny, "log_probability", "log_probability")
    activation_patch(tiny, [clean], [corrupt], sites, [{"late": torch.tensor([20])}], readout)
    columns = clean.batch["input_ids"].shape[1] - 20 - 1  # the answer's last token is predicted and never read
    assert seen == {f"language.layers.{layer}.attn_out": (layer, columns) for layer in range(1, 4)}


def test_where_both_runs_are_equal_nothing_is_patched(tiny, pairs):
    """The words before a replaced one, and the image, are the same in a causal stream: exactly no effect."""
    clean, _ = contrast_runs(tiny, image_pair_contrasts(pairs)[0])
    ids = clean.batch["input_ids"].clone()
    column = int(clean.batch.prompt_end[0]) - 3
    ids[0, column] += 1
    corrupt = Run(clean.query, type(clean.batch)({**clean.batch, "input_ids": ids}, clean.batch.prompt_end,
                                                 clean.batch.answer_mask))
    groups = {"before": torch.arange(column), "all": None}
    result = activation_patch(
        tiny, [clean], [corrupt], ["language.layers.0.resid_post"], [groups],
        make_readout(tiny, "log_probability", "log_probability"),
    )  # fmt: skip
    assert result.score_CRG[0, 0, 0] == result.low_C[0]
    assert result.score_CRG[0, 0, 1] == pytest.approx(result.high_C[0], abs=1e-5)
    assert abs(result.high_C[0] - result.low_C[0]) > 1e-4


# --- where the quick passes are not exact -----------------------------------------------------------------------------


@pytest.fixture
def own(tiny_llava):
    """A LLaVA that a test may change."""
    return tiny_llava()


def test_a_stream_that_looks_ahead_keeps_no_prefix(own, pairs, capsys):
    """A layer that shifts every token towards the mean of all: what comes after a patch changes what is before it."""
    own.site("language.layers.1.resid_post").module.register_forward_hook(
        lambda _, __, out: out + out.mean(dim=1, keepdim=True)
    )
    cases = [contrast_runs(own, each) for each in image_pair_contrasts(pairs)[:2]]
    sites = {f"language.layers.{layer}.resid_post": (f"language.layers.{layer}.resid_post",) for layer in range(4)}
    compare(own, cases, sites, {"late": torch.tensor([20])})
    said = capsys.readouterr().err
    assert "keep the positions before the patch do not reproduce whole ones" in said
    assert "begin at the patched layer" not in said


def test_a_block_that_reads_an_earlier_one_is_run_as_a_whole(own, pairs, capsys):
    """A skip connection past the blocks: passes that begin above layer 0 lack what it carries."""
    kept = {}
    own.site("language.layers.0.mlp_out").module.register_forward_hook(lambda _, __, out: kept.update(skip=out))
    own.site("language.layers.3.resid_post").module.register_forward_hook(
        lambda _, __, out: out + kept.pop("skip", torch.zeros(()))
    )
    cases = [contrast_runs(own, each) for each in image_pair_contrasts(pairs)[:1]]
    sites = {f"language.layers.{layer}.resid_post": (f"language.layers.{layer}.resid_post",) for layer in (1, 2)}
    compare(own, cases, sites, {"late": torch.tensor([20])})
    assert "begin at the patched layer do not reproduce whole ones" in capsys.readouterr().err


def test_noise_inside_what_is_restored_takes_whole_passes(tiny, cases_of, capsys):
    _, cases = cases_of["llava"]
    clean = cases[0][0]
    double = TokenEdit(lambda acts_ND, modality_N, where: 2 * acts_ND, tokens="visual")
    noisy = Run(clean.query, clean.batch, (("language.layers.2.mlp_out", double),))
    sites = {f"language.layers.{layer}.resid_post": (f"language.layers.{layer}.resid_post",) for layer in (1, 2)}
    compare(tiny, [(clean, noisy)], sites, {"image": torch.arange(2, 12)})
    assert "the corruption enters at language.layers.2.mlp_out" in capsys.readouterr().err


# --- rows and groups that are not there -------------------------------------------------------------------------------


def test_heads_are_equal_shares_of_what_the_output_map_reads(tiny):
    parts = head_parts(tiny, "language.layers.2.heads")
    width = tiny.site("language.layers.2.heads").module.in_features
    assert [(part.start, part.stop) for part in parts] == [
        (head * width // 4, (head + 1) * width // 4) for head in range(4)
    ]


def test_all_heads_together_are_the_attention_output(tiny, cases_of):
    """The attention output is a linear map of the heads: restoring all of them restores it."""
    model, cases = cases_of["llava"]
    rows = {"heads": head_parts(model, "language.layers.1.heads"), "output": ["language.layers.1.attn_out"]}
    clean, corrupt = zip(*cases, strict=True)
    readout = make_readout(model, "log_probability", "log_probability")
    result = activation_patch(model, clean, corrupt, rows, [{"some": torch.tensor([5, 9])}] * 2, readout)
    np.testing.assert_allclose(result.score_CRG[:, 0], result.score_CRG[:, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("tiny_clip", {"module": "head"}, r"tiny clip has no sites vision\.layers\.\*\.heads\|attn1_heads .* has "
         "residual, mlp, attention, self_attention$"),
        ("tiny", {"module": "cross_attention"}, r"tiny has no sites language\.layers\.\*\.cross_attn_out"),
        ("tiny", {"stream": "text"}, r"trace\.stream=text\); its streams are language$"),
        ("tiny", {"positions": ["CLS"]}, r"trace\.positions: the language stream of tiny has no position group 'CLS'; "
         "there are changed object, other objects, background, "),
    ],
)  # fmt: skip
def test_what_a_model_does_not_have_is_one_clear_line(model, options, said, pairs, request):
    config = TraceConfig(method="semantic_pair", max_samples=2, correct_only=False, **options)
    with pytest.raises(ConfigError, match=said) as error:
        trace(request.getfixturevalue(model), pairs, config)
    assert "\n" not in str(error.value)


def test_heads_have_no_windows():
    with pytest.raises(ConfigError, match=r"trace\.window=3"):
        TraceConfig(method="semantic_pair", module="head", window=3)


def test_a_corruption_that_does_not_corrupt_is_said(tiny, pairs, capsys):
    """Noise of a millionth of σ changes nothing that a test could tell from zero."""
    config = TraceConfig(
        max_samples=4, correct_only=False, readout="log_probability", image_positions="none", text_positions="none",
        layers=[0], noise=NoiseConfig(scale=1e-9, draws=1),
    )  # fmt: skip
    result = trace(tiny, pairs, config)
    lines = [line for line in capsys.readouterr().err.splitlines() if "cannot be told from none" in line]
    assert len(lines) == 1
    assert "take a stronger corruption" in lines[0]
    assert not result.totals()["corrupts"]
