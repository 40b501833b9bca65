"""M-SAE with a decoder for each modality."""

from __future__ import annotations

from cmma.sae.architectures.msae import MSAE
from cmma.sae.architectures.towers import Towers


class MSAEDecoders(Towers, MSAE):
    """M-SAE whose latents are shared and whose features are not: f_i^v in visual and f_i^t in textual records.

    A concept's directions differ between modalities. One shared feature has to be their mean, or the concept splits
    into two latents; here the objective (Eq. 4-6) acts on the activations alone and costs no reconstruction.
    """

    shares_encoder = True
