"""What holds for every architecture: it trains, resumes and is saved with every term of the objective switched on."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from cmma.errors import ConfigError
from cmma.sae import load_sae
from cmma.sae.architectures.registry import CLASSES, build_sae
from cmma.sae.config import ARCHITECTURES, COUNTED, OptimConfig, preset
from cmma.sae.io import save_sae
from cmma.sae.mesh import Mesh
from cmma.sae.records import TensorReader
from cmma.sae.standardiser import Standardiser
from cmma.sae.training.loop import train
from cmma.sae.training.parallel import spread
from cmma.sae.training.trainer import Trainer

D, K = 8, 24
EVERYTHING = {
    "lambda1": 0.05, "lambda2": 0.01, "lambda3": 0.01, "attention": True, "attention_rank": 2,
    "adaptive_sparsity": True, "target_l0_visual": 5.0, "target_l0_textual": 3.0,
}
OPTIM = OptimConfig(lr=3e-3, batch=40, steps=12, warmup=2, evaluate_every=5, checkpoint_every=4, log_every=1,
                    dead_after=60, resample_every=3)


def reader() -> TensorReader:
    """Pairs with labels and context vectors."""
    g = torch.Generator().manual_seed(0)
    n = 150
    shared_ND = torch.randn(n, D, generator=g)
    acts_ND = torch.stack([shared_ND * 3 + 1, shared_ND.roll(1, 1) - 1], 1).flatten(0, 1)
    acts_ND = acts_ND + 0.3 * torch.randn(2 * n, D, generator=g)
    return TensorReader(
        acts_ND, torch.arange(2).repeat(n), torch.arange(n).repeat_interleave(2),
        labels_NL=(torch.rand(2 * n, 4, generator=g) < 0.3).float(), context_NCD=torch.randn(2 * n, 2, D, generator=g))


def dictionary(arch: str):
    return build_sae(preset(arch, n_latents=K, k=4, **EVERYTHING), D, Standardiser.fit(reader()), seed=1)


class Stop(Exception):
    """Raised from the log to end a run at a chosen step."""


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_trains_resumes_and_comes_back(tmp_path, arch):
    def stop(metrics: dict) -> None:
        if metrics["step"] == 7:
            raise Stop

    whole, resumed = dictionary(arch), dictionary(arch)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    train(whole, reader(), OPTIM, tmp_path / "whole")
    with pytest.raises(Stop):
        train(resumed, reader(), OPTIM, tmp_path / "resumed", log=stop)
    resumed = dictionary(arch)
    train(resumed, reader(), OPTIM, tmp_path / "resumed")
    state = resumed.state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole.state_dict().items())
    moved = {name.split(".")[0] for name, value in state.items() if not torch.equal(value, before[name])}
    assert {"W_enc", "W_dec", "b_pre", "attention"} <= moved

    save_sae(whole, tmp_path / "sae")
    loaded, batch = load_sae(tmp_path / "sae"), next(iter(reader().held_out(20)))
    with torch.no_grad():
        ours, theirs = (sae(batch.acts_BD, batch.modality_B, batch.context_BCD) for sae in (whole, loaded))
    torch.testing.assert_close(ours, theirs)  # not to the bit: weights read from a file are aligned otherwise
    assert (ours.latents_BK >= 0).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_cross_modal_terms_reach_the_encoder(arch):
    """R_cross and R_align are functions of the latents, whatever makes them: their gradient arrives at W_enc."""
    records = next(iter(reader().batches(200, 0, together=True)))

    def gradient(**weights: float) -> torch.Tensor:
        plain = {"lambda1": 0.0, "lambda2": 0.0, "lambda3": 0.0}
        sae = build_sae(preset(arch, n_latents=K, k=4, revive="none", **{**plain, **weights}), D,
                        Standardiser.fit(reader()), seed=1)
        trainer = Trainer(sae, OptimConfig(batch=200, steps=1), 200, reader().n_labels)
        found: list[torch.Tensor] = []
        trainer._update = lambda: found.append(sae.W_enc.grad.clone())
        trainer.advance(records)
        return found[0]

    bare_KD = gradient()
    assert not torch.equal(gradient(lambda2=5.0), bare_KD)
    assert not torch.equal(gradient(lambda3=5.0), bare_KD)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in COUNTED])
def test_the_controller_moves_lambda1(arch):
    sae = dictionary(arch)
    trainer = Trainer(sae, OPTIM, 300, 4)
    for batch in islice(reader().batches(40, 0), 3):
        trainer.advance(batch)
    assert (trainer.objective.lambda1_M > 0.05).all()  # the dictionary starts denser than its targets


@pytest.mark.parametrize("arch", [arch for arch, kind in CLASSES.items() if kind.reads_pairs])
def test_what_reads_pairs_keeps_all_latents_in_one_process(arch):
    mesh = Mesh()
    mesh.tp = 2
    with pytest.raises(ConfigError, match=f"sae.arch={arch} .* launch.tp=1"):
        spread(dictionary(arch), mesh)


def test_samples_stay_together_when_pairs_are_read():
    for batch in islice(reader().batches(40, 0, together=True), 5):
        assert batch.sample_B.unique_consecutive().numel() == batch.sample_B.unique().numel() >= 20
