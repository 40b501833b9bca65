"""The paper's multimodal sparse autoencoder."""

from __future__ import annotations

from cmma.sae.architectures.standard import Standard


class MSAE(Standard):
    """Multimodal SAE: h = Σ a_i f_i + ε with a = ReLU(W_enc (h − b_pre) + b_enc)  (paper, Eq. 1-2).

    The encoder is the standard one, with cross-modal attention as an option. What makes it multimodal is its
    objective: the cross-modal penalty and the alignment reward (Eq. 4-6), in `cmma.sae.objective`.
    """
