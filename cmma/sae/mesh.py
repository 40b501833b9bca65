"""The processes of a training run as a (dp, tp) grid, and everything that they exchange.

A loss is computed from sums over processes that all of them know, and each process differentiates it with respect to
its own share of the sums. So no backward pass exchanges anything; the gradients of latents are to be summed over dp,
and those of what every process holds over all. With one process nothing here touches torch.distributed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from cmma.errors import ConfigError

Axis = Literal["dp", "tp", "all"]
"""Which processes: those that hold the same latents (dp), those that read the same records (tp), or all."""


class Mesh:
    """This process in a grid of dp × tp: records are spread over dp, latents over tp.

    Process r reads part r // tp of every batch and holds part r % tp of the latents.

    Args:
        rank, world: this process and their number. tp: processes that share the latents; it divides `world`.

    Raises:
        ConfigError: several processes without an initialised process group of that size, or a tp that is no divisor.
    """

    def __init__(self, rank: int = 0, world: int = 1, tp: int = 1) -> None:
        if world > 1 and not (dist.is_initialized() and dist.get_world_size() == world):
            raise ConfigError(f"training over {world} ranks needs a torch.distributed process group of that size; "
                              "start it with launch=torchrun")
        if world % tp:
            raise ConfigError(f"launch.tp={tp} does not divide the {world} processes; start a multiple of it")
        self.rank, self.world, self.tp, self.dp = rank, world, tp, world // tp
        self.dp_rank, self.tp_rank = divmod(rank, tp)
        self._place = {"dp": self.dp_rank, "tp": self.tp_rank, "all": rank}
        grid = torch.arange(world).view(self.dp, tp)
        self._size = {"dp": self.dp, "tp": tp, "all": world}
        self._group = {"all": None, "tp": _own_group(grid), "dp": _own_group(grid.T)}

    # --- sums ------------------------------------------------------------------------------------------------------

    def sum_(self, tensors: Iterable[Tensor], axis: Axis) -> None:
        """Replace each tensor by its sum over processes, in one message per dtype."""
        if self._size[axis] == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        for group in by_dtype.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in group])
            dist.all_reduce(flat, group=self._group[axis])
            for tensor, total in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def sum(self, axis: Axis, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over processes; the gradient of a sum is that of this process's share."""
        return tensors if self._size[axis] == 1 else _Sum.apply(self, axis, *tensors)

    def total(self, axis: Axis, number: int) -> int:
        """Sum of a number over processes."""
        if self._size[axis] == 1:
            return number
        return int(self.gather(axis, torch.tensor(number)).sum())

    def norm(self, own: list[Tensor], common: list[Tensor]) -> Tensor:
        """Norm of a vector of which every tp peer holds the part `own`; the tensors `common` of it are the same."""
        norm: Tensor = torch.nn.utils.get_total_norm(own)
        if self.tp == 1:
            return norm
        of_common = torch.nn.utils.get_total_norm(common).square()
        of_latents = norm.square() - of_common
        self.sum_([of_latents], "tp")
        return (of_latents + of_common).sqrt()

    def share(self, tensor: Tensor) -> Tensor:
        """What each tp peer adds of a tensor that all hold, so that their sum is the tensor."""
        return tensor if self.tp == 1 else tensor / self.tp

    # --- order -----------------------------------------------------------------------------------------------------

    def gather(self, axis: Axis, tensor: Tensor) -> Tensor:
        """The tensors of all processes of an axis, of one shape, stacked in their order."""
        n = self._size[axis]
        if n == 1:
            return tensor[None]
        flat = tensor.new_empty(n * tensor.numel())
        dist.all_gather_into_tensor(flat, tensor.reshape(-1).contiguous(), group=self._group[axis])
        return flat.view(n, *tensor.shape)

    def before(self, axis: Axis, number: int) -> int:
        """Sum of a number over the lower processes of an axis."""
        return int(self.gather(axis, torch.tensor(number))[: self._place[axis]].sum())

    def keep_largest(self, axis: Axis, values_RN: Tensor, k: int | Tensor) -> Tensor:
        """Zero what is not among the k largest of its row, the numbers of all processes taken together.

        Of equal numbers those of lower processes are kept, and within a process the first.

        Args:
            values_RN: at least the k largest of each row that this process has, or all that it has.
            k: one for all rows, or one for each [R].
        """
        if self._size[axis] == 1:
            return values_RN
        n_rows, n_own = values_RN.shape
        most = k if isinstance(k, int) else int(k.max()) if len(k) else 1
        k_R1 = torch.as_tensor(k, device=values_RN.device).expand(n_rows)[:, None]
        padded_RN = F.pad(values_RN.detach(), (0, most - n_own), value=-torch.inf)
        all_RM = self.gather(axis, padded_RN).transpose(0, 1).flatten(1)
        threshold_R1 = all_RM.topk(most, dim=1).values.gather(1, k_R1 - 1)
        above_RM, tied_RM = all_RM > threshold_R1, all_RM == threshold_R1
        kept_RM = above_RM | (tied_RM & (tied_RM.cumsum(1) <= k_R1 - above_RM.sum(1, keepdim=True)))
        return values_RN * kept_RM.unflatten(1, (-1, most))[:, self._place[axis], :n_own]

    def all_latents(self, own_XK: Tensor) -> Tensor:
        """Something [..., K / tp] of this process's latents → that of all latents [..., K]."""
        return own_XK if self.tp == 1 else self.gather("tp", own_XK).movedim(0, -2).flatten(-2)

    def rows_on_first(self, own_KX: Tensor) -> Tensor:
        """All rows of a tensor [K / tp, ...] on the first of the tp peers; the others get their own back."""
        if self.tp == 1:
            return own_KX
        parts = [torch.empty_like(own_KX) for _ in range(self.tp)] if self.tp_rank == 0 else None
        dist.gather(own_KX, parts, group=self._group["tp"], group_dst=0)
        return torch.cat(parts) if parts else own_KX

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()


class _Sum(torch.autograd.Function):
    """Sum over processes; backward, every process has the same loss and takes its own share's gradient."""

    @staticmethod
    def forward(ctx: Any, mesh: Mesh, axis: Axis, *tensors: Tensor) -> tuple[Tensor, ...]:
        totals = tuple(tensor.clone() for tensor in tensors)
        mesh.sum_(totals, axis)
        needed = ctx.needs_input_grad[2:]
        ctx.mark_non_differentiable(*(total for total, need in zip(totals, needed, strict=True) if not need))
        return totals

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *gradients


def _own_group(grid: Tensor) -> Any:
    """The group of this process among the rows of a grid; None where a row is everybody or one alone."""
    if 1 in grid.shape:
        return None
    return dist.new_subgroups_by_enumeration(grid.tolist())[0]


ALONE = Mesh()
"""One process."""
