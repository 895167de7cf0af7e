"""The values that a gated activation may give: f(gate) * up, as an interval in float64.

Errors in units of u = 2^-24, relative unless said otherwise; second-order terms are within the last factor, `SLACK`.

    e^-z    2^(c z): the constant c (1), its product (1) and, for the polynomial of gelu_tanh, three more operations on
            terms of one sign (x x, its product and the sum; its constants 2): off by a factor e^(k |z|), k = 2 or 7;
            and the instruction (ex2.approx.f32: 2^-22 = 4 u; v_exp_f32: 1 ulp = 2 u), 4.
    f       x / (1 + e^-z): the exponential's error by its share of the sum, the sum 1, the division 5 (div.full.f32:
            2 ulp = 4 u; without IEEE division AMD's is 2.5 ulp = 5 u).
    gelu    x / 2 (1 + erf(x / sqrt(2))): erf off by what its argument is (2 u |z| erf'(z)) and by 4 ulp, 8 u of |erf|;
            the sum 1 and the product 1. Where erf is near -1 little is left of it: the error is carried absolutely.
    y       the product with up, 1.

An exponential past the largest fp32 makes the quotient 0; dividing by more than 2^126 may too. Past 6, erf is 1
exactly.
"""

from __future__ import annotations

import math

import torch

UNIT = 2.0**-24
SUBNORMAL = 2.0**-126
SLACK = 1.001
LARGEST_DIVISOR = 2.0**126
# e to the power of more than this is infinite in fp32.
LARGEST_EXPONENT = 89.0
ERF_IS_ONE = 6.0
EXP_UNITS = 4
DIVISION_UNITS = 5
ERF_UNITS = 8


def _quotient(x: torch.Tensor, z: torch.Tensor, argument_units: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of |x| / (1 + e^-z)."""
    exponential = torch.exp(-z)
    share = torch.sigmoid(-z)
    error = UNIT * SLACK * ((argument_units * z.abs() + EXP_UNITS) * share + 1 + DIVISION_UNITS)
    exact = x.abs() * torch.sigmoid(z)
    low = torch.where(exponential < LARGEST_DIVISOR / 2, exact * (1 - error), 0.0)
    return low - SUBNORMAL, exact * (1 + error) + SUBNORMAL * (x.abs().clamp_max(LARGEST_EXPONENT) + 1)


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    z = x / math.sqrt(2.0)
    erf = torch.special.erf(z)
    density = 2 / math.sqrt(math.pi) * torch.exp(-z * z)
    total = torch.special.erfc(-z)
    error = UNIT * SLACK * (2 * z.abs() * density + ERF_UNITS * erf.abs() + 2 * total)
    error = torch.where(z.abs() < ERF_IS_ONE, error, UNIT * SLACK * 2 * total)
    half = 0.5 * x.abs()
    return half * (total - error) - SUBNORMAL, half * (total + error) + SUBNORMAL


def activated(gate: torch.Tensor, activation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of |f(gate)|, of a gate in fp32; NaN where it is not finite. The sign is the gate's."""
    x = gate.to(torch.float64)
    if activation == "silu":
        low, high = _quotient(x, x, 2)
    elif activation == "gelu":
        low, high = _gelu(x)
    else:
        low, high = _quotient(x, 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), 7)
    finite = torch.isfinite(gate)
    return torch.where(finite, low.clamp_min(0.0), torch.inf), torch.where(finite, high, torch.inf)
