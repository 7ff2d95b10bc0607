"""AdamW (arXiv 1711.05101) on fp32 master weights, for parameters that may be bf16.

Gradients of the micro-batches of a step are added up in fp32, so that many small ones do not vanish in bf16 rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class MasterAdamW:
    """Call `gather` after each backward, then `step` once. `named` fixes the order and the names of the saved state."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.parameters = dict(named)
        self.masters = {
            name: p if p.dtype == torch.float32 else nn.Parameter(p.detach().float())
            for name, p in self.parameters.items()
        }
        for name, master in self.masters.items():
            if master is not self.parameters[name]:
                master.grad = torch.zeros_like(master)
        # Decay belongs on matrices; norms and biases stay free.
        groups = [
            {"params": [m for m in self.masters.values() if m.ndim >= 2], "weight_decay": weight_decay},
            {"params": [m for m in self.masters.values() if m.ndim < 2], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=betas, eps=eps, fused=True)

    def gather(self) -> None:
        """Add the parameters' gradients to the masters' and clear them."""
        for name, parameter in self.parameters.items():
            master = self.masters[name]
            if master is not parameter and parameter.grad is not None:
                assert master.grad is not None
                master.grad.add_(parameter.grad)
                parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, clip: float) -> tuple[float, bool]:
        """Clip the gradient's norm to `clip` (0: leave it) and update. Returns the norm before, and whether the update was
        made: a step whose gradient is not finite is skipped."""
        grads = [m.grad for m in self.masters.values() if m.grad is not None]
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        finite = math.isfinite(norm)
        if finite:
            if clip and norm > clip:
                torch._foreach_mul_(grads, clip / norm)
            for group in self._adamw.param_groups:
                group["lr"] = lr
            self._adamw.step()
            for name, parameter in self.parameters.items():
                if self.masters[name] is not parameter:
                    parameter.copy_(self.masters[name])
        for grad in grads:
            grad.zero_()
        return norm, finite

    def state(self) -> dict[str, Tensor]:
        """Everything an exact resume needs, by name: masters, both moments, the step count."""
        tensors: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            tensors[f"master.{name}"] = master.detach()
            for key, value in self._adamw.state.get(master, {}).items():
                tensors[f"{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave. Raises `KeyError` when a name is missing."""
        for name, master in self.masters.items():
            master.copy_(tensors[f"master.{name}"])
            if self.parameters[name] is not master:
                self.parameters[name].copy_(master)
            if f"step.{name}" in tensors:
                self._adamw.state[master] = {
                    key: tensors[f"{key}.{name}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
                }
