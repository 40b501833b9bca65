"""The training loop that all small models share: two optimisers, one schedule, weight averaging, exact resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cmma.console import say
from cmma.testbed.training.state import load_state, save_state


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training stage.

    Attributes:
        steps, batch: length of the stage and images per step.
        lr: peak rate of Muon (matrices; scaled to AdamW's update size) and of AdamW (everything else).
        slow: factor on the rate of parameters whose name starts with `slow_prefix`.
        warmup: steps of linear warm-up; cosine decay to 5% of the peak follows.
        flatten: Muon also on convolutions, as matrices of output channel × everything else.
        average: decay of the exponential moving average of the weights that is kept at the end.
    """

    steps: int
    batch: int
    lr: float
    slow: float = 1.0
    slow_prefix: str = ""
    warmup: int = 100
    weight_decay: float = 0.05
    flatten: bool = False
    average: float = 0.995
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step relative to the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class Optimiser:
    """Muon on hidden matrices, AdamW on embeddings, heads, norms, biases and (unless flattened) convolutions."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        self.flat: list[tuple[nn.Parameter, nn.Parameter]] = []
        for name, parameter in model.named_parameters():
            if recipe.flatten and parameter.ndim == 4:  # the same storage, seen as a matrix
                self.flat.append((parameter, nn.Parameter(parameter.data.view(len(parameter), -1))))
                parameter = self.flat[-1][1]
            matrix = parameter.ndim == 2 and not any(word in name for word in ("embed", "lm_head", "heads."))
            factor = recipe.slow if recipe.slow_prefix and name.startswith(recipe.slow_prefix) else 1.0
            groups.setdefault((matrix, factor), []).append(parameter)
        self.factors = {matrix: [f for m, f in groups if m == matrix] for matrix in (True, False)}
        lists = {matrix: [{"params": p} for (m, _), p in groups.items() if m == matrix] for matrix in (True, False)}
        self.muon = torch.optim.Muon(
            lists[True], lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = torch.optim.AdamW(lists[False], lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)

    def step(self, step: int) -> None:
        """Update every parameter at the rate of this step and clear the gradients."""
        for parameter, flat in self.flat:
            if parameter.grad is not None:
                flat.grad, parameter.grad = parameter.grad.reshape(flat.shape), None
        for matrix, optimiser in ((True, self.muon), (False, self.adamw)):
            for group, factor in zip(optimiser.param_groups, self.factors[matrix], strict=True):
                group["lr"] = self.recipe.lr * factor * self.recipe.rate(step)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def train(
    model: nn.Module,
    recipe: Recipe,
    batches: Dataset,
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]],
    checkpoint: Path,
    preview: Callable[[], None] | None = None,
    save_every: float = 60.0,
) -> float:
    """Train until `recipe.steps` and leave the averaged weights in `model`; goes on from `checkpoint` if it exists.

    A step depends on the recipe, its batch and the state alone, so a killed run continues exactly where it was saved.
    Batches are moved to the device that the model is on.

    Args:
        loss: batch → (scalar loss, numbers to print).
        checkpoint: file of tensors, replaced atomically every `save_every` seconds.
        preview: called at each tenth of the training with the averaged weights in `model`.

    Returns:
        Minutes of training, all runs together.
    """
    device = next(model.parameters()).device
    optimiser = Optimiser(model, recipe)
    average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    done, seconds = 0, 0.0
    if checkpoint.exists():
        state = load_state(checkpoint, device)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        average, done, seconds = state["average"], state["step"], state["seconds"]
        say(f"resumed {checkpoint.name} at step {done}")

    def save(step: int) -> None:
        elapsed = seconds + time.monotonic() - began
        save_state(
            {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "average": average,
             "step": step, "seconds": elapsed}, checkpoint,
        )  # fmt: skip

    began = saved = time.monotonic()
    workers = 1 if device.type == "cpu" else 8
    loader: Iterable[Any] = DataLoader(
        batches, batch_size=None, sampler=range(done, recipe.steps), num_workers=workers, prefetch_factor=4
    )
    for step, batch in enumerate(loader, start=done):
        value, numbers = loss(_moved(batch, device))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step(step)
        _update_average(average, model, min(recipe.average, (step + 1) / (step + 10)))
        if (step + 1) % 25 == 0:
            shown = " ".join(f"{name} {number:.4f}" for name, number in numbers.items())
            elapsed = seconds + time.monotonic() - began
            say(f"step {step + 1}/{recipe.steps} {elapsed:.0f}s loss {value.item():.4f} {shown}")
        if time.monotonic() - saved > save_every:
            save(step + 1)
            saved = time.monotonic()
        if preview is not None and (step + 1) % (recipe.steps // 10) == 0 and step + 1 < recipe.steps:
            _with_average(model, average, preview)
    minutes = (seconds + time.monotonic() - began) / 60
    if done < recipe.steps:
        save(recipe.steps)
    model.load_state_dict(average)
    return minutes


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: _moved(value, device) for name, value in batch.items()}
    return tuple(_moved(value, device) for value in batch)


def _update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    current = model.state_dict()
    floating = [name for name, tensor in current.items() if tensor.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in floating], [current[n].detach() for n in floating], 1 - decay)


def _with_average(model: nn.Module, average: dict[str, Tensor], then: Callable[[], None]) -> None:
    current = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(average)
    then()
    model.load_state_dict(current)
