"""Weight-only quantisation: round to nearest, symmetric, without calibration data.

Shapes: N outputs, K inputs, J groups of 32 inputs.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Weights = Literal["bf16", "int8", "int4"]
GROUP = 32
# Quantiles of a normal distribution (NF4, arXiv 2305.14314) in 127ths, so that a code's value is a signed byte.
CODES = (-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127)
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # scales tried for a group, as parts of the one that fits its largest value


def quantize_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Signed bytes (N, K) and a scale (N) for each output: weight ~ bytes * scale."""
    weight = weight_NK.float()
    scale_N = weight.abs().amax(1).div_(127)
    bytes_NK = (weight / scale_N.clamp_min(1e-30)[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    return bytes_NK, scale_N


def quantize_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Codes 0..15 (N, K) and scales (N, J): weight ~ CODES[code] * scale. Each scale is the one, of a few below the largest
    that is needed, that leaves the smallest squared error; it is rounded to bf16 as it will be stored."""
    groups_NJg = weight_NK.float().unflatten(1, (-1, GROUP))
    values = torch.tensor(CODES, dtype=torch.float32, device=groups_NJg.device)
    borders = (values[1:] + values[:-1]) / 2
    largest_NJ = groups_NJg.abs().amax(-1)
    best_error = torch.full_like(largest_NJ, torch.inf)
    best_scale, best_codes = torch.zeros_like(largest_NJ), torch.zeros_like(groups_NJg, dtype=torch.uint8)
    for shrink in _SHRINK:
        scale_NJ = (largest_NJ * (shrink / 127)).bfloat16().float()
        scaled = groups_NJg / scale_NJ.clamp_min(1e-30)[..., None]
        codes = torch.bucketize(scaled, borders, out_int32=True)
        error_NJ = (values[codes] * scale_NJ[..., None] - groups_NJg).square_().sum(-1)
        better = error_NJ < best_error
        best_error = torch.where(better, error_NJ, best_error)
        best_scale = torch.where(better, scale_NJ, best_scale)
        best_codes = torch.where(better[..., None], codes.to(torch.uint8), best_codes)
    return best_codes.flatten(1), best_scale


def dequantize_int4(codes_NK: Tensor, scales_NJ: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights (N, K) that codes and scales stand for."""
    values = torch.tensor(CODES, dtype=torch.float32, device=codes_NK.device)
    groups = values[codes_NK.int()].unflatten(1, (-1, GROUP)) * scales_NJ[..., None]
    return groups.flatten(1).to(dtype)
