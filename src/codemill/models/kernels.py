"""The element-wise parts of a decoder with hand-written gradients.

Autograd would keep and re-read several full-size intermediates for each of these; on a CPU, where element-wise work is
bound by memory, that costs more than the matrix products between them. Reductions run in fp32 whatever the input dtype.

Shapes: T tokens, D width, F mlp width, H heads, K head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        out, scale_T1 = _normalise(x_TD, weight_D, eps)
        ctx.save_for_backward(x_TD, weight_D, scale_T1)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad_TD,) = grads
        x_TD, weight_D, scale_T1 = ctx.saved_tensors
        unit_TD = x_TD.float().mul_(scale_T1)
        g32 = grad_TD.float()
        weight_grad = (g32 * unit_TD).sum(0).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        g32 = g32 * weight_D
        along_T1 = (g32 * unit_TD).mean(-1, keepdim=True)
        return g32.addcmul_(unit_TD, along_T1, value=-1).mul_(scale_T1).to(x_TD.dtype), weight_grad, None


def _normalise(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x32 = x_TD.float()
    norm_T1 = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
    scale_T1 = norm_T1.square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
    return (x32 * scale_T1).to(x_TD.dtype).mul_(weight_D), scale_T1


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_TF2: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_TF2)
        return _gated(gate_up_TF2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad_TF,) = grads
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        out = torch.empty_like(gate_up)
        out_gate, out_up = out.chunk(2, -1)
        torch.mul(grad_TF, F.silu(gate), out=out_up)
        torch.ops.aten.silu_backward.grad_input(grad_TF * up, gate, grad_input=out_gate)
        return out


def _gated(gate_up_TF2: Tensor) -> Tensor:
    gate, up = gate_up_TF2.chunk(2, -1)
    return F.silu(gate).mul_(up)


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THK: Tensor, cos_T1K: Tensor, sin_T1h: Tensor) -> Tensor:
        ctx.save_for_backward(cos_T1K, sin_T1h)
        return _rotate(x_THK, cos_T1K, sin_T1h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_T1K, sin_T1h = ctx.saved_tensors
        return _rotate(grads[0], cos_T1K, -sin_T1h), None, None  # a rotation's transpose turns the other way


def _rotate(x_THK: Tensor, cos_T1K: Tensor, sin_T1h: Tensor) -> Tensor:
    half = x_THK.shape[-1] // 2
    first, second = x_THK[..., :half], x_THK[..., half:]
    out = x_THK * cos_T1K
    out[..., :half].addcmul_(second, sin_T1h, value=-1)
    out[..., half:].addcmul_(first, sin_T1h)
    return out


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm (arXiv 1910.07467): x / sqrt(mean(x^2) + eps) * weight."""
    if not torch.is_grad_enabled():
        return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    result: Tensor = _RMSNorm.apply(x_TD, weight_D, eps)
    return result


def swiglu(gate_up_TF2: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202) for gate and up side by side in the last dimension: (T, 2F) -> (T, F)."""
    if not torch.is_grad_enabled():
        return _gated(gate_up_TF2)
    result: Tensor = _SwiGLU.apply(gate_up_TF2)
    return result


def rope(x_THK: Tensor, cos_T1K: Tensor, sin_T1h: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864), the half-split layout of Llama and Qwen2."""
    if not torch.is_grad_enabled():
        return _rotate(x_THK, cos_T1K, sin_T1h)
    result: Tensor = _Rope.apply(x_THK, cos_T1K, sin_T1h)
    return result


def rope_tables(positions_T: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines (T, 1, K) and, since both halves of a head turn alike, half of the sines (T, 1, K/2); computed in fp32."""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=positions_T.device, dtype=torch.float32) / head_dim)
    angle = positions_T.float()[:, None] * frequency
    cos_T1h, sin_T1h = (x[:, None, :].to(dtype) for x in (angle.cos(), angle.sin()))
    return torch.cat((cos_T1h, cos_T1h), -1), sin_T1h
