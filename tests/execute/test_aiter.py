"""AITER's own kernels, compiled for gfx950 and executed: listings that nobody here wrote.

Runs with the amd-aiter that is installed, or with an unpacked wheel: `pytest --aiter-root FOLDER tests/execute`; see
tests/bench/test_aiter_parity.py, which asks Triton's interpreter of the same.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from tunegen.bench.agreement import RopeOutputs, mxfp4_agreement, rope_failures
from tunegen.bench.aiter import Aiter, load_aiter
from tunegen.bench.aiter.ops import mla_rope_cache, mxfp4_quant
from tunegen.errors import UsageError
from tunegen.execute.driver import executing
from tunegen.runtime.families import OPS
from tunegen.targets import get_target

GFX950 = get_target("gfx950")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def aiter(pytestconfig: pytest.Config) -> Aiter:
    """Where there is one."""
    given: Path | None = pytestconfig.getoption("--aiter-root")
    try:
        return load_aiter(given)
    except UsageError as error:
        if given is not None:
            raise
        warnings.warn(f"AITER's kernels were not executed: {error}", stacklevel=1)
        pytest.skip("no amd-aiter here; see the warning")


@pytest.mark.parametrize("op", ["dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"])
@pytest.mark.parametrize(("hidden_size", "tokens"), [(7168, 3), (512, 40)])
def test_quantisation(op: str, hidden_size: int, tokens: int, aiter: Aiter) -> None:
    generator = torch.Generator().manual_seed(tokens)
    args = OPS[op].inputs({"hidden_size": hidden_size}, tokens, torch.bfloat16, CPU, generator)
    with executing(GFX950):
        outputs = mxfp4_quant(aiter, args)
    assert mxfp4_agreement(args, "none", outputs).failures == []


@pytest.mark.parametrize("variant", ["none", "none,neox", "none,fp8", "none,neox,fp8"])
@pytest.mark.parametrize(("heads", "tokens"), [(16, 7), (128, 1)])
def test_rope_and_cache(heads: int, tokens: int, variant: str, aiter: Aiter) -> None:
    sizes = {"num_heads": heads, "kv_lora_rank": 512, "rope_dim": 64}
    generator = torch.Generator().manual_seed(tokens)
    args = OPS["mla_rope_cache"].inputs(sizes, tokens, torch.bfloat16, CPU, generator, variant)
    args[7][::3] = -1
    width = args[6].shape[-1]
    before = args[6].clone()
    with executing(GFX950):
        q_out, k_pe_out = mla_rope_cache(aiter, args)
    assert rope_failures(args, before.view(-1, width), RopeOutputs(q_out, k_pe_out, args[6].view(-1, width))) == []
