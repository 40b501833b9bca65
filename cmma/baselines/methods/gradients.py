"""Gradients through captum: Integrated Gradients (Sundararajan et al. 2017) and Grad-CAM (Selvaraju et al. 2017).

Both explain the model's own output by the image tokens of the layer: how often it is expected to say a concept's words,
where its caption says them (what is not said leaves nothing to explain: the map is zero); and, for hallucination, the
margin of a hallucinated word. So they detect what the caption says.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

import torch
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from captum.attr import LayerGradCam
from torch import Tensor, nn

from cmma.baselines.ground import Ground, Images, Mentions, OutputOfRecords, PhraseCounts, image_records
from cmma.baselines.methods.base import DirectionMethod, Reading, strongest
from cmma.console import progress
from cmma.evaluation.scene_captions import SHAPES_VOCABULARY
from cmma.mitigation.spoken import MentionReadout


class GradientMethod(DirectionMethod):
    """A gradient of the output with respect to the image tokens, and a map made of it."""

    @abstractmethod
    def gradients(
        self, output: OutputOfRecords, records_BPD: Tensor, row_B: Tensor, target: int | None
    ) -> tuple[Tensor, Tensor]:
        """Gradient Float[B, P, D] and map Float[B, P] of one output of the queries `row_B`."""

    def read(self, images: Images) -> Reading:
        """One unit per concept. The image scores as its strongest patch does."""
        found = self._of_selection if images is self.ground.selection else self._explain(images)
        return strongest(found[1].cpu().numpy(), by_concept=True)

    def concept_directions(self) -> Tensor:
        """Mean gradient over patches and the selection images whose captions say the concept, up to its length."""
        return self._of_selection[0]

    def hallucination_direction(self, mentions: Mentions) -> Tensor:
        """Mean gradient of the margin of hallucinated words."""
        ground, wrong = self.ground, mentions.wrong
        readout = MentionReadout(ground.model, SHAPES_VOCABULARY)
        records_NPD = image_records(
            ground.model, ground.layer, [mention.sample for mention in wrong], ground.config.batch_size)
        total_D = torch.zeros_like(ground.baseline_D)
        for rows in self._chunks(len(wrong)):
            output = OutputOfRecords(ground.model, ground.layer, wrong[rows], readout)
            here_BPD = records_NPD[rows]
            total_D += self.gradients(output, here_BPD, torch.arange(len(here_BPD)), None)[0].sum((0, 1))
        return total_D

    @cached_property
    def _of_selection(self) -> tuple[Tensor, Tensor]:
        return self._explain(self.ground.selection)

    def _explain(self, images: Images) -> tuple[Tensor, Tensor]:
        """Sum of gradients [C, D] and maps [I, P, C] of the images; zero where the caption does not say the concept."""
        names, said_IC = images.labels.names, torch.from_numpy(images.said_IC)
        readout = PhraseCounts(self.ground.model, names)
        total_CD = images.records_IPD.new_zeros(len(names), images.records_IPD.shape[-1])
        maps_IPC = images.records_IPD.new_zeros(*images.records_IPD.shape[:2], len(names))
        with progress(self.name, total=len(images.queries)) as bar:
            for rows in self._chunks(len(images.queries)):
                output = OutputOfRecords(self.ground.model, self.ground.layer, images.queries[rows], readout)
                for concept in said_IC[rows].any(0).nonzero().flatten().tolist():
                    row_B = said_IC[rows, concept].nonzero().flatten()
                    here_B = row_B + rows.start
                    gradient_BPD, maps_IPC[here_B, :, concept] = self.gradients(
                        output, images.records_IPD[here_B], row_B, concept)
                    total_CD[concept] += gradient_BPD.sum((0, 1))
                bar.advance(len(said_IC[rows]))
        return total_CD, maps_IPC

    def _chunks(self, n: int) -> list[slice]:
        size = self.ground.config.batch_size
        return [slice(start, start + size) for start in range(0, n, size)]


class IntegratedGradients(GradientMethod):
    """∫ ∂f dα from the mean image token to the tokens; by it and the difference, attributions sum to the difference
    of the outputs."""

    def __init__(self, ground: Ground) -> None:
        super().__init__("Integrated Gradients", ground)

    def gradients(
        self, output: OutputOfRecords, records_BPD: Tensor, row_B: Tensor, target: int | None
    ) -> tuple[Tensor, Tensor]:
        """See `GradientMethod.gradients`."""
        baseline_BPD = self.ground.baseline_D.expand_as(records_BPD)
        gradient_BPD = CaptumIntegratedGradients(output, multiply_by_inputs=False).attribute(
            records_BPD, baseline_BPD, target=target, n_steps=self.ground.config.ig_steps,
            additional_forward_args=(row_B,), internal_batch_size=2 * self.ground.config.batch_size,
        )  # fmt: skip
        return gradient_BPD.detach(), (gradient_BPD * (records_BPD - baseline_BPD)).sum(-1).detach()


class GradCAM(GradientMethod):
    """max(0, Σ_d α_d h_d) of the centred tokens, α the gradient's mean over the image."""

    def __init__(self, ground: Ground) -> None:
        super().__init__("Grad-CAM", ground)

    def gradients(
        self, output: OutputOfRecords, records_BPD: Tensor, row_B: Tensor, target: int | None
    ) -> tuple[Tensor, Tensor]:
        """See `GradientMethod.gradients`; the gradient is α at every patch."""
        centred = _Centred(output, self.ground.baseline_D)
        channels_BDP = (records_BPD - self.ground.baseline_D).transpose(1, 2)
        weighted_BDP = LayerGradCam(centred, centred.channels).attribute(
            channels_BDP, target=target, additional_forward_args=(row_B,),
            attr_dim_summation=False,
        ).detach()  # fmt: skip
        # captum gives α_d h_dp; α by least squares over the patches, which is exact.
        alpha_BD = (weighted_BDP * channels_BDP).sum(-1) / channels_BDP.square().sum(-1)
        return alpha_BD[:, None].expand_as(records_BPD), weighted_BDP.sum(1).relu()


class _Centred(nn.Module):
    """The output as a function of centred tokens with their channels first, as Grad-CAM wants a layer."""

    def __init__(self, output: OutputOfRecords, baseline_D: Tensor) -> None:
        super().__init__()
        self.channels = nn.Identity()
        self._output, self._baseline_D = output, baseline_D

    def forward(self, channels_BDP: Tensor, row_B: Tensor) -> Tensor:
        """Outputs of the rows."""
        return self._output(self.channels(channels_BDP).transpose(1, 2) + self._baseline_D, row_B)
