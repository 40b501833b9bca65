"""Passes that start at a layer against whole ones."""

from __future__ import annotations

import pytest
import torch

from cmma.hooks import Trace
from cmma.hooks.resume import can_resume, inputs_above, resumed
from cmma.models.sites import UnknownSite
from cmma.testbed.generate import generate_samples

LAYER = 1


@torch.no_grad()
def test_passes_resume_above_a_layer_and_the_model_is_left_as_it_was(tiny):
    batch = tiny.collate(list(generate_samples("balanced", 0, 3)))
    site, after = f"language.layers.{LAYER}.resid_post", f"language.layers.{LAYER + 1}.resid_post"
    with Trace(tiny, [site, after]) as whole:
        before = tiny(**batch).logits
    assert can_resume(tiny, LAYER)
    above = inputs_above(tiny, LAYER, batch)
    assert "pixel_values" not in above
    with resumed(tiny, {site: whole[site]}), Trace(tiny, [after]) as again:
        logits = tiny(**above).logits
    torch.testing.assert_close(again[after], whole[after], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits, before, atol=1e-5, rtol=0)
    assert torch.equal(tiny(**batch).logits, before)
    assert all("forward" not in vars(child) for child in tiny.module.modules())


def test_a_pass_can_only_start_at_the_output_of_a_block(tiny):
    with pytest.raises(UnknownSite, match="mlp_out"), resumed(tiny, {"language.layers.0.mlp_out": torch.zeros(1)}):
        pass
