"""How good a dictionary is, from streaming float64 sums over records it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from cmma.errors import DataError
from cmma.modality import Modality
from cmma.sae.architectures.base import SparseAutoencoder
from cmma.sae.records import RecordBatch
from cmma.sae.standardiser import N_MODALITIES, modality_one_hot

_NAMED = (Modality.VISUAL, Modality.TEXTUAL, Modality.JOINT)
RAREST, BINS = -6.0, 24
"""Bins of log10 activation frequency, from here to 0; what is rarer falls into the first one."""


def gini(latents_BK: Tensor) -> Tensor:
    """Gini coefficient of each row of non-negative values, [B]: 0 if all are equal, 1 − 1/K if one alone is active.

    Hurley & Rickard 2009: 1 − 2 Σ_i (a_(i) / ‖a‖₁) (K − i + ½) / K over the ascending order; 0 for a silent row.
    """
    n_latents = latents_BK.shape[1]
    most = max(1, int((latents_BK > 0).sum(1).max()))  # zeros sort first and contribute nothing
    descending_Bk = latents_BK.topk(most, dim=1).values.double()
    weight_k = (torch.arange(most, device=latents_BK.device, dtype=torch.float64) + 0.5) / n_latents
    total_B = descending_Bk.sum(1)
    return torch.where(total_B > 0, 1 - 2 * (descending_Bk @ weight_k) / total_B.clamp_min(1e-300), 0.0)


class SAEMetrics(nn.Module):
    """Sums from which every metric follows; `update` with batches, then `summary`.

    FVU = Σ‖x − x̂‖² / Σ‖x − x̄‖² in the model's own units, by sums over all records seen, so that it does not depend on
    how they are batched. `fvu` takes x̄ over all records, `fvu_visual` and so on over the records of that modality, and
    `fvu_within` sums numerators and denominators of the latter: it gives no credit for telling the modalities apart.

    Args:
        d, n_latents: sizes of the dictionary.
    """

    count_M: Tensor
    sum_MD: Tensor
    square_M: Tensor
    error_M: Tensor
    l0_M: Tensor
    gini_M: Tensor
    cosine_M: Tensor
    fired_MK: Tensor
    activation_MK: Tensor

    def __init__(self, d: int, n_latents: int) -> None:
        super().__init__()
        for name, shape in {
            "count_M": (), "sum_MD": (d,), "square_M": (), "error_M": (), "l0_M": (), "gini_M": (), "cosine_M": (),
            "fired_MK": (n_latents,), "activation_MK": (n_latents,),
        }.items():
            self.register_buffer(name, torch.zeros(N_MODALITIES, *shape, dtype=torch.float64))

    @torch.no_grad()
    def update(self, acts_BD: Tensor, reconstruction_BD: Tensor, latents_BK: Tensor, modality_B: Tensor) -> None:
        """Add a batch: records and reconstructions [B, d] in the model's units, latents [B, K], codes [B]."""
        one_hot_MB = modality_one_hot(modality_B, torch.float64).T
        x_BD, error_BD = acts_BD.double(), acts_BD.double() - reconstruction_BD.double()
        cosine_B = torch.cosine_similarity(x_BD, reconstruction_BD.double(), dim=1)
        active_BK = (latents_BK > 0).to(latents_BK.dtype)
        weight_MB = one_hot_MB.to(latents_BK.dtype)
        for total, value in (
            (self.count_M, one_hot_MB.sum(1)), (self.sum_MD, one_hot_MB @ x_BD),
            (self.square_M, one_hot_MB @ x_BD.square().sum(1)), (self.error_M, one_hot_MB @ error_BD.square().sum(1)),
            (self.l0_M, one_hot_MB @ active_BK.sum(1).double()), (self.gini_M, one_hot_MB @ gini(latents_BK)),
            (self.cosine_M, one_hot_MB @ cosine_B), (self.fired_MK, weight_MB @ active_BK),
            (self.activation_MK, weight_MB @ latents_BK),
        ):
            total += value

    @property
    def frequency_K(self) -> Tensor:
        """Share of the records seen on which each latent is active."""
        return self.fired_MK.sum(0) / self.count_M.sum().clamp_min(1)

    @property
    def mean_activation_MK(self) -> Tensor:
        """E[a_i | modality] over the records seen, [3, K]; 0 for an absent modality."""
        return self.activation_MK / self.count_M.clamp_min(1)[:, None]

    @property
    def mean_MD(self) -> Tensor:
        """Mean record of each modality in the model's units, [3, d]; 0 for an absent modality."""
        return self.sum_MD / self.count_M.clamp_min(1)[:, None]

    def frequency_histogram(self) -> dict[str, list[float]]:
        """How many latents have which activation frequency: `log10_edges`, and counts for `all` and each modality seen.

        Latents that never fired are in no bin: they are `dead_fraction`.
        """
        seen = {"all": (self.fired_MK.sum(0), self.count_M.sum())} | {
            m.name.lower(): (self.fired_MK[m], self.count_M[m]) for m in _NAMED if self.count_M[m] > 0
        }
        histogram = {"log10_edges": torch.linspace(RAREST, 0, BINS + 1).tolist()}
        for name, (fired_K, count) in seen.items():
            exponent_K = (fired_K[fired_K > 0] / count).log10().clamp_min(RAREST)
            histogram[name] = exponent_K.cpu().histc(BINS, RAREST, 0).tolist()
        return histogram

    def dead_fraction_after(self, n_records: Sequence[int]) -> list[float]:
        """Share of the latents that are silent on n records, for each n up to the number of records seen.

        A dead fraction falls with the records it is judged on. This is its expectation over which n of the N records
        seen are looked at: a latent that fired on f of them is missed with probability C(N − f, n) / C(N, n)
        (rarefaction, Hurlbert 1971). It needs no more than the counts, so ranks add up.

        Raises:
            ValueError: more records than were seen.
        """
        total, n_N1 = self.count_M.sum(), self.count_M.new_tensor(list(n_records))[:, None]
        if (n_N1 > total).any():
            raise ValueError(f"{int(n_N1.max())} records were asked for and {int(total)} were seen")
        silent_K = total - self.fired_MK.sum(0)
        return (_log_choose(silent_K, n_N1) - _log_choose(total, n_N1)).exp().mean(1).tolist()

    def summary(self) -> dict[str, float]:
        """Every metric as a plain number; those of a modality only if it had records.

        Keys: n_records, fvu, fvu_within, cosine, l0, gini (of the latents of a record, mean over records), mass_gini
        (of the total activation of each latent: how unevenly the dictionary is used), dead_fraction (latents silent on
        every record seen), and n_records_*, fvu_*, cosine_*, l0_*, gini_*, mass_gini_*, dead_fraction_* for visual,
        textual, joint.

        Raises:
            DataError: no record was seen.
        """
        n = float(self.count_M.sum())
        if n == 0:
            raise DataError("there are no held-out records to evaluate on; raise activations.held_out or n_samples")
        sum_D = self.sum_MD.sum(0)
        variance = float(self.square_M.sum() - sum_D.square().sum() / n)
        within_M = self.square_M - self.sum_MD.square().sum(1) / self.count_M.clamp_min(1)
        result = {
            "n_records": n, "fvu": _ratio(float(self.error_M.sum()), variance),
            "fvu_within": _ratio(float(self.error_M.sum()), float(within_M.sum())),
            "cosine": float(self.cosine_M.sum()) / n, "l0": float(self.l0_M.sum()) / n,
            "gini": float(self.gini_M.sum()) / n, "mass_gini": float(gini(self.activation_MK.sum(0, keepdim=True))),
            "dead_fraction": float((self.fired_MK.sum(0) == 0).double().mean()),
        }
        mass_gini_M = gini(self.activation_MK)
        for m in _NAMED:
            count, name = float(self.count_M[m]), m.name.lower()
            if count:
                result[f"n_records_{name}"] = count
                result[f"fvu_{name}"] = _ratio(float(self.error_M[m]), float(within_M[m]))
                result[f"mass_gini_{name}"] = float(mass_gini_M[m])
                for key in ("cosine", "l0", "gini"):
                    result[f"{key}_{name}"] = float(getattr(self, f"{key}_M")[m]) / count
                result[f"dead_fraction_{name}"] = float((self.fired_MK[m] == 0).double().mean())
        return result


@torch.no_grad()
def measure_together(
    saes: Sequence[SparseAutoencoder], batches: Iterable[RecordBatch],
    also: Sequence[Callable[[RecordBatch, Tensor], None]] | None = None,
) -> list[SAEMetrics]:
    """The sums of dictionaries on one device over all batches, which are read once; `evaluate_sae` for numbers alone.

    Args:
        also: for each dictionary what is given each batch with its latents [B, K].
    """
    device = saes[0].W_enc.device
    measured = [SAEMetrics(sae.d, sae.config.n_latents).to(device) for sae in saes]
    for batch in batches:
        records = batch.to(device)
        for number, (sae, metrics) in enumerate(zip(saes, measured, strict=True)):
            out = sae(records.acts_BD, records.modality_B, records.context_BCD)
            latents_BK = sae.mesh.all_latents(out.latents_BK)
            metrics.update(records.acts_BD, out.reconstruction_BD, latents_BK, records.modality_B)
            if also is not None:
                also[number](records, latents_BK)
    return measured


def evaluate_sae(sae: SparseAutoencoder, batches: Iterable[RecordBatch]) -> dict[str, float]:
    """Metrics of a dictionary on some records, usually `reader.held_out(batch_size)`; keys: `SAEMetrics.summary`."""
    return measure_together([sae], batches)[0].summary()


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """log C(n, k); −∞ where k > n."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _ratio(numerator: float, denominator: float) -> float:
    """FVU; constant records have no variance to explain: 0 if they are met exactly, else 1."""
    return numerator / denominator if denominator > 0 else float(numerator > 0)
