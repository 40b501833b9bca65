"""Sums over the ranks of a data-parallel run. With one rank nothing here touches torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch import distributed as dist

from cmma.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """This process among those that share each global batch.

    Raises:
        ConfigError: several ranks without an initialised process group of that size.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.world > 1 and not (dist.is_initialized() and dist.get_world_size() == self.world):
            raise ConfigError(f"training over {self.world} ranks needs a torch.distributed process group of that size; "
                              "start it with launch=torchrun")

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over ranks, in one message per dtype."""
        if self.world == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat)
            for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def sum_keeping_gradient(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over ranks whose gradient flows into this rank's share alone.

        For a loss that every rank computes from the same sums, the gradients so obtained add up over ranks to the
        gradient of one process with the whole batch.
        """
        if self.world == 1:
            return tensors
        totals = [tensor.detach().clone() for tensor in tensors]
        self.sum_(totals)
        return tuple(
            total + (tensor - tensor.detach()) if tensor.requires_grad else total
            for tensor, total in zip(tensors, totals, strict=True)
        )

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()
