"""Information flow: cells against one pass each, groups by hand, and the order in which a trained model reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from cmma.causal.config import TraceConfig
from cmma.causal.flows import find_flows, flow_groups
from cmma.causal.intervening import queries_for
from cmma.causal.knockout import knock_out, scaled_window
from cmma.causal.method_configs import KnockoutConfig
from cmma.causal.methods.registry import run_method
from cmma.causal.modules import window
from cmma.causal.positions import object_patches
from cmma.causal.readout import collate_queries, make_readout
from cmma.config import load_group
from cmma.errors import ConfigError
from cmma.hooks import Knockout
from cmma.models import load_model
from cmma.models.spec import ModelSpec
from cmma.testbed.generate import generate_samples

FLOWS = {
    "llava": ["image->question", "objects->question", "question->last", "last->last"],
    "blip": ["image->question", "question->question", "question->start"],
    "clip": ["objects->CLS", "image->image", "question->last"],
}


@pytest.fixture(scope="module")
def models(tiny):
    def load(family):
        fields = {"family": family, "weights": "random", "source": "", "n_layers": 4}
        return load_model(ModelSpec(name=family, architecture=f"{family}-tiny", **fields))

    return {"llava": tiny, "blip": load("blip"), "clip": load("clip")}


@pytest.fixture(scope="module")
def scenes():
    return list(generate_samples("balanced", 0, 4))


def one_by_one(model, query, readout, flow, centre, width):
    """The readout of one query alone, whole pass, one flow blocked in one window."""
    batch = collate_queries(model, [query])
    lengths = {"language": batch["input_ids"].shape[1]} if model.streams == ("language",) else {}
    if not lengths:
        patches = model.image_positions(batch).shape[1] + 1
        text = batch["input_ids" if "input_ids" in batch else "text"].shape[1]
        lengths = {"vision": patches, "text": text}
        if "decoder_input_ids" in batch:
            lengths["decoder"] = batch["decoder_input_ids"].shape[1]
    groups = flow_groups(model, batch, [query.sample], lengths)
    (found,) = find_flows(model, groups, [flow])
    pairs = groups[found.queries][found.target][:, :, None] & groups[found.keys][found.source][:, None]
    kind = "attention" if found.queries == found.keys else "cross_attention"
    depth = len([name for name in model.attentions if name.startswith(found.queries) and name.endswith(f".{kind}")])
    blocked = {f"{found.queries}.layers.{layer}.{kind}": pairs for layer in range(*window(centre, width, depth))}
    with torch.no_grad(), Knockout(model, blocked):
        return float(readout(batch, [query]))


@pytest.mark.parametrize("family", FLOWS)
def test_cells_that_share_passes_equal_one_pass_each(models, scenes, family):
    """Padded batches, resumed passes and shared rows change nothing; the cosine has no padding to hide."""
    model = models[family]
    queries = queries_for(model, scenes)
    readout = make_readout(model, "auto", "first_token_probability")
    result = knock_out(model, queries, readout, flows=FLOWS[family], width=2, rows_per_forward=7)
    for flow in FLOWS[family]:
        for column, centre in enumerate(result.layers[flow]):
            for row, query in enumerate(queries):
                alone = one_by_one(model, query, readout, flow, centre, 2)
                assert result.score_NL[flow][row, column] == pytest.approx(alone, rel=1e-5, abs=1e-7)
    assert max(np.abs(result.change_NL(flow)).max() for flow in FLOWS[family]) > 0.1


def test_windows_scale_with_depth():
    assert [scaled_window(depth) for depth in (32, 12, 40, 4, 2)] == [9, 3, 11, 1, 1]


def test_groups_of_a_llava_are_the_parts_of_its_prompt(tiny, scenes):
    query = queries_for(tiny, scenes)[0]
    batch = collate_queries(tiny, [query])
    length = batch["input_ids"].shape[1]
    groups = flow_groups(tiny, batch, [query.sample], {"language": length})["language"]
    place = {name: member[0].nonzero().flatten().tolist() for name, member in groups.items()}
    visual = (batch["input_ids"][0] == tiny.config.image_token_id).nonzero().flatten().tolist()
    end = int(batch.prompt_end[0])
    visible = [index for index, thing in enumerate(query.sample.objects) if thing["visible"]]
    shown = object_patches(query.sample, visible, (3, 3))
    assert place["image"] == visual
    assert place["objects"] == [at for at, here in zip(visual, shown, strict=True) if here]
    assert sorted(place["objects"] + place["background"]) == visual
    assert place["question"] == list(range(visual[-1] + 1, end))
    assert place["last"] == [end]


def test_flows_follow_what_attention_allows(models, scenes):
    def names(family):
        model = models[family]
        readout = make_readout(model, "auto", "probability")
        return set(knock_out(model, queries_for(model, scenes[:1]), readout, layers=[0]).score_NL)

    llava = names("llava")
    assert {"image->question", "image->last", "question->last", "last->last", "objects->question"} < llava
    assert not {"question->image", "last->question", "last->image", "question->background"} & llava
    assert names("blip") == {
        "image->question", "objects->question", "background->question", "CLS->question", "question->question",
        "start->start", "question->start",
    }  # fmt: skip
    assert {"CLS->image", "image->CLS", "question->last"} < names("clip")


def test_blocking_a_later_layer_than_it_is_read_changes_nothing(models, scenes):
    """The question's states of the last layer reach the answer only through last: image→question there is idle."""
    model = models["llava"]
    readout = make_readout(model, "auto", "first_token_probability")
    result = knock_out(model, queries_for(model, scenes), readout, flows=["image->question", "last->last"], width=1)
    assert np.abs(result.change_NL("image->question")[:, -1]).max() < 1e-4
    assert np.abs(result.change_NL("last->last")[:, -1]).max() > 1e-2


def test_what_cannot_be_knocked_out_is_one_line(models, scenes):
    config = TraceConfig(method="knockout", max_samples=2)
    for wrong, message in (
        (replace(config, knockout=KnockoutConfig(flows=["image->start"])), "it has .*image->question"),
        (replace(config, layers=[4]), "layers of tiny are 0 to 3"),
        (replace(config, readout="cosine"), "readout=cosine does not fit"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_method(models["llava"], scenes, wrong)
    with pytest.raises(ConfigError, match="source->target"):
        KnockoutConfig(flows=["image→question"])
    fields = {"family": "stable_diffusion", "weights": "random", "source": "", "architecture": "stable-diffusion-tiny"}
    painter = load_model(ModelSpec(name="sd", n_layers=4, **fields))
    with pytest.raises(ConfigError, match="takes no mask"):
        run_method(painter, scenes, config)


def test_the_question_reads_the_image_before_the_answer_reads_the_question():
    """toy_llava: the centre of mass of image→question lies layers before that of question→last."""
    model = load_model(ModelSpec(**load_group("model", "toy_llava")))
    samples = list(generate_samples("balanced", 100, 148))
    flows = KnockoutConfig(flows=["image->question", "question->last"])
    config = TraceConfig(method="knockout", max_samples=48, layers=[0, 2, 4, 6, 8], knockout=flows)
    found = run_method(model, samples, config).summary
    assert found["order_later_by"] > 1
    assert found["order_low"] > 0
    assert found["order_p"] < 0.01
