"""Runs in a process of its own, which has an emitted pack and torch and nothing of tunegen.

    python inside_pack.py PROJECT EXPECTED

Prints one JSON object: the name of each check, with what failed in it or an empty string. EXPECTED is a file of
calls and their outputs, made with the reference; rope.pt beside it holds calls that write their arguments too, with
those as they are afterwards.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import warnings
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import torch

PROJECT, EXPECTED = Path(sys.argv[1]), Path(sys.argv[2])


class Blocker(MetaPathFinder):
    """Refuses what a pack must not import; jinja2 is PyTorch's own affair."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        root = fullname.partition(".")[0]
        frame, importers = sys._getframe(), []
        while frame is not None:
            importers.append(frame.f_globals.get("__name__", ""))
            frame = frame.f_back
        by_torch = any(name.partition(".")[0] == "torch" for name in importers)
        if root in ("tunegen", "optuna") or (root == "jinja2" and not by_torch):
            raise ImportError(f"{fullname} is blocked")


def outputs_of(call: dict[str, Any], function: Any = None) -> tuple[torch.Tensor, ...]:
    function = function or getattr(importlib.import_module("tunegen_ops"), call["op"])
    return function(*call["args"])


def assert_equal(call: dict[str, Any], outputs: tuple[torch.Tensor, ...]) -> None:
    assert len(outputs) == len(call["outputs"])
    for output, expected in zip(outputs, call["outputs"], strict=True):
        assert output.dtype == expected.dtype, call["op"]
        assert torch.equal(output, expected), call["op"]


def check_import_is_lazy() -> None:
    """Beside torch, importing the pack loads its own modules and the standard library's: no kernel, no triton."""
    before = set(sys.modules)
    pack = importlib.import_module("tunegen_ops")
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert loaded - sys.stdlib_module_names <= {"tunegen_ops", "torch"}, loaded
    assert not [name for name in sys.modules if name.startswith("_tunegen_kernel")]
    assert not {"tunegen", "optuna"} & set(sys.modules)
    assert pack.__version__.startswith("0.")


def check_cpu_is_the_reference() -> None:
    calls = torch.load(EXPECTED)
    assert {call["op"] for call in calls} == {"dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"}
    for call in calls:
        assert_equal(call, outputs_of(call))


def check_cpu_ops_that_write_are_the_reference() -> None:
    calls = torch.load(EXPECTED.with_name("rope.pt"))
    assert {call["op"] for call in calls} == {"mla_rope_cache", "mla_rope_cache_"}
    for call in calls:
        written = [*(outputs_of(call) or ()), *(call["args"][at] for at in call["written"])]
        assert len(written) == len(call["outputs"])
        for tensor, expected in zip(written, call["outputs"], strict=True):
            assert (tensor.dtype, tensor.shape) == (expected.dtype, expected.shape), call["op"]
            # To the bit: a cache of random bits holds NaN.
            one, other = (t.contiguous().view(torch.uint8) for t in (tensor, expected))
            assert torch.equal(one, other), call["op"]


def check_no_tokens() -> None:
    import tunegen_ops

    q, scales, residual_out = tunegen_ops.rmsnorm_add_mxfp4_quant(
        torch.empty(0, 96).bfloat16(), torch.empty(0, 96).bfloat16(), torch.ones(96).bfloat16(), 1e-6
    )
    assert (q.shape, scales.shape, residual_out.shape) == ((0, 48), (0, 3), (0, 96))


def check_opcheck() -> None:
    tested = set()
    for call in torch.load(EXPECTED):
        rounding = call["args"][-1] if isinstance(call["args"][-1], str) else ""
        if (call["op"], rounding) in tested or call["args"][0].shape[0] < 2:
            continue
        tested.add((call["op"], rounding))
        op = getattr(torch.ops.tunegen_ops, call["op"]).default
        torch.library.opcheck(op, tuple(call["args"]))
        # Only inputs that require grad make test_autograd_registration do something. The AOT test adds the sums of
        # the outputs up in the first one's dtype, an integer, and then cannot differentiate.
        args = [arg.clone().requires_grad_() if isinstance(arg, torch.Tensor) else arg for arg in call["args"]]
        utils = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(op, tuple(args), test_utils=utils)
    assert len(tested) == 11, tested


def check_opcheck_of_forms() -> None:
    """One op of every kind of source, quantiser and layout of scales; all are registered."""
    from tunegen_ops.runtime.families import OPS

    calls = (
        ("dynamic_mxfp4_quant", "none,columns"),
        ("silu_mul_mxfp4_quant", "output,shuffled"),
        ("dual_rmsnorm", "norm_output"),
        ("dual_rmsnorm_add_and_mxfp4_quant", "sum_output,padded"),
        ("rmsnorm_mxfp8_quant", "none"),
        ("rmsnorm_fp8_group_quant", "none,columns"),
        ("rmsnorm_add_nvfp4_quant", "none"),
    )
    assert {name for name in OPS if not hasattr(getattr(torch.ops.tunegen_ops, name), "default")} == set()
    for name, variant in calls:
        op = OPS[name]
        args = op.inputs(
            dict.fromkeys(op.sizes, 128), 3, torch.bfloat16, torch.device("cpu"), torch.Generator(), variant
        )
        registered = getattr(torch.ops.tunegen_ops, name).default
        torch.library.opcheck(registered, args, test_utils=("test_schema", "test_faketensor"))
        made, allocated = registered(*args), op.allocate(*args)
        assert [(t.shape, t.stride(), t.dtype) for t in made] == [(t.shape, t.stride(), t.dtype) for t in allocated]


def check_compat_aiter_signatures() -> None:
    """AITER's names and defaults, in both releases."""
    import inspect

    from tunegen_ops.compat import aiter, aiter_0_1_7

    def parameters(function: Any) -> list[str]:
        given = inspect.signature(function).parameters.values()
        return [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in given]

    norms = ["x1", "x1_weight", "x1_epsilon", "x2=None", "x2_weight=None", "x2_epsilon=0.0", "res1=None"]
    norms += ["shuffle=False", "scale_shuffle_padding=False"]
    assert parameters(aiter_0_1_7.fused_rms_mxfp4_quant) == norms
    assert parameters(aiter.fused_rms_mxfp4_quant) == [*norms, "output_unquantized_inp1=False", "inargs=auto"]
    assert parameters(aiter.dynamic_mxfp4_quant) == ["x", "scaling_mode=even"]
    rope = ["q_nope", "q_pe", "k_nope", "k_pe", "kv_cache", "slot_mapping", "pos", "cos", "sin", "k_scale", "is_neox"]
    rope += ["num_decode_toks_for_zeros=0", "apply_scale=True", "q_out=None", "decode_q_pe_out=None", "k_pe_out=None"]
    rope += ["q_out_dtype=None"]
    assert parameters(aiter_0_1_7.fused_qk_rope_cat_and_cache_mla) == rope
    later = [*rope, "shuffled_kv_cache=False", "upcast_operand=False"]
    assert parameters(aiter.fused_qk_rope_cat_and_cache_mla) == later


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    assert one.dtype == other.dtype
    assert torch.equal(one, other)


def check_compat_aiter_norms() -> None:
    """Every combination of what may be asked for, computed by the pack's ops."""
    import tunegen_ops
    from tunegen_ops.compat import aiter, aiter_0_1_7

    x, x2, res = torch.randn(5, 256).bfloat16(), torch.randn(5, 64).bfloat16(), torch.randn(5, 256).bfloat16()
    w, w2 = torch.randn(256).bfloat16(), torch.randn(64).bfloat16()
    q, scales = aiter.dynamic_mxfp4_quant(x)
    assert scales.stride() == (1, 5)
    for one, other in zip((q, scales), tunegen_ops.dynamic_mxfp4_quant(x), strict=True):
        same(one, other)
    for flags in range(16):
        given = {"res1": res} if flags & 1 else {}
        given |= {"x2": x2, "x2_weight": w2, "x2_epsilon": 1e-5} if flags & 2 else {}
        given |= {"shuffle": True} if flags & 4 else {}
        (q, scales), norm, norm2, total = aiter.fused_rms_mxfp4_quant(
            x, w, 1e-6, **given, output_unquantized_inp1=bool(flags & 8)
        )
        args = (x, res, w, 1e-6) if flags & 1 else (x, w, 1e-6)
        layout = "shuffled" if flags & 4 else "rows"
        op = tunegen_ops.rmsnorm_add_mxfp4_quant if flags & 1 else tunegen_ops.rmsnorm_mxfp4_quant
        for one, other in zip((q, scales, total)[: 2 + (flags & 1)], op(*args, "none", layout), strict=True):
            same(one, other)
        assert [out is None for out in (norm, norm2, total)] == [not flags & 8, not flags & 2, not flags & 1]
        if flags & 2:
            same(norm2, tunegen_ops.dual_rmsnorm(x, w, 1e-6, x2, w2, 1e-5)[1])
        if flags & 8:
            both = tunegen_ops.rmsnorm_add_and_mxfp4_quant(x, res if flags & 1 else x * 0, w, 1e-6)
            same(norm, both[3])
        if not flags & 8:
            earlier = aiter_0_1_7.fused_rms_mxfp4_quant(x, w, 1e-6, **given)
            assert len(earlier) == 3
            same(earlier[0][0], q)
            assert (earlier[1] is None, earlier[2] is None) == (norm2 is None, total is None)


def check_compat_aiter_rope() -> None:
    """Tables as halves of one, apart and with every angle twice; outputs that are given; fp8."""
    from tunegen_ops.compat import aiter, aiter_0_1_7
    from tunegen_ops.runtime.families import OPS

    generator = torch.Generator().manual_seed(0)
    sizes = {"num_heads": 2, "kv_lora_rank": 64, "rope_dim": 16}
    for upcast, fp8 in ((False, False), (True, False), (False, True)):
        variant = ("none" if upcast else "act") + (",fp8" if fp8 else "")
        op = OPS["mla_rope_cache"]
        args = op.inputs(sizes, 4, torch.bfloat16, torch.device("cpu"), generator, variant)
        q_nope, q_pe, kv_c, k_pe, positions, table, cache, slots, k_scale, *_ = args
        width = cache.shape[-1]
        given = cache.clone().view(-1, 1, width)
        expected = op.reference(*args)
        cos, sin = table.chunk(2, -1)
        keys = (kv_c.unsqueeze(1), k_pe.reshape(4, 1, -1), given, slots, positions)
        for tables in (
            (cos, sin),
            (cos.contiguous(), sin.contiguous()),
            [t.repeat_interleave(2, -1) for t in (cos, sin)],
        ):
            place = torch.empty(4, 2, 80).bfloat16()
            out = aiter.fused_qk_rope_cat_and_cache_mla(
                q_nope, q_pe, *keys, *tables, k_scale, False, 2, q_out=place, upcast_operand=upcast
            )
            assert out[0] is place
            same(out[0], expected[0])
            same(out[1], expected[0][:2, :, 64:])
            same(out[2], expected[1].unsqueeze(1))
            same(out[3], torch.zeros(2, 2, 64).bfloat16())
            same(given.view(torch.uint8), cache.view(-1, 1, width).view(torch.uint8))
        if not upcast:
            more = aiter_0_1_7.fused_qk_rope_cat_and_cache_mla(q_nope, q_pe, *keys, cos, sin, k_scale, False)
            assert (len(more), more[3] is given) == (4, True)
            dtype = torch.float8_e4m3fn
            more = aiter_0_1_7.fused_qk_rope_cat_and_cache_mla(
                q_nope, q_pe, *keys, cos, sin, k_scale, False, 2, q_out_dtype=dtype
            )
            assert (len(more), more[0].dtype) == (5, dtype)
            same(more[1], expected[0][:2, :, 64:])


def check_pt2_compliant() -> None:
    import tunegen_ops  # noqa: F401

    norms = ("dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant")
    for op in (*norms, "mla_rope_cache", "mla_rope_cache_"):
        assert torch.Tag.pt2_compliant_tag in getattr(torch.ops.tunegen_ops, op).default.tags


def check_inference_only() -> None:
    import tunegen_ops

    x = torch.randn(3, 96).bfloat16().requires_grad_()
    weight = torch.nn.Parameter(torch.ones(96).bfloat16())
    q, scales, residual_out = tunegen_ops.rmsnorm_add_mxfp4_quant(x, x.detach(), weight, 1e-6)
    assert not q.requires_grad
    assert not scales.requires_grad
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        residual_out.float().sum().backward()
    assert any("autograd kernel was not registered" in str(warning.message) for warning in caught)
    assert x.grad is None
    with torch.inference_mode():
        tunegen_ops.rmsnorm_add_mxfp4_quant(x, x, weight, 1e-6)


def check_compiles_once_for_all_token_counts() -> None:
    import tunegen_ops
    from torch._dynamo.testing import CompileCounterWithBackend

    weight = torch.rand(96).bfloat16()

    def model(x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, scales, residual = tunegen_ops.rmsnorm_add_mxfp4_quant(x * 2, residual, weight, 1e-6, "sum_output")
        return (q + 1, scales, residual, *tunegen_ops.dynamic_mxfp4_quant(residual))

    for backend in ("eager", "aot_eager"):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=counter)
        for tokens, compilations in ((3, 1), (17, 1), (33, 1), (1, 2), (3, 2), (0, 3), (65, 3)):
            args = torch.randn(2, tokens, 96).bfloat16()
            for output, expected in zip(compiled(*args), model(*args), strict=True):
                assert torch.equal(output, expected)
            assert counter.frame_count <= compilations, (backend, tokens, counter.frame_count)


def check_bad_inputs_are_refused() -> None:
    import tunegen_ops
    from tunegen_ops.runtime.families import OpInputError

    x, weight = torch.zeros(2, 96).bfloat16(), torch.ones(96).bfloat16()
    cases: list[tuple[Any, ...]] = [(x[0], weight, 1e-6), (x[:, :95], weight, 1e-6), (x, weight, 1e-6, "nearest")]
    for args in cases:
        try:
            tunegen_ops.rmsnorm_mxfp4_quant(*args)
        except OpInputError:
            continue
        raise AssertionError(args)


def check_supports_and_explains() -> None:
    import tunegen_ops
    from tunegen_ops.runtime.api import PackNameError
    from tunegen_ops.runtime.device import DeviceKey

    mi350x, h100 = DeviceKey("gfx950", 256, 288), DeviceKey("sm90", 132, 79)
    op = "rmsnorm_mxfp4_quant"
    assert tunegen_ops.supports(op, device=mi350x, hidden_size=512)
    assert not tunegen_ops.supports(op, device=mi350x, hidden_size=544)
    assert not tunegen_ops.supports(op, device=DeviceKey("gfx942", 304, 192), hidden_size=512)
    assert not tunegen_ops.supports(op, device="cpu", hidden_size=512)

    explanation = tunegen_ops.explain(op, 16, device=h100, rounding="sum_output", hidden_size=512)
    assert explanation.kernel.startswith("kernels/sm90/rmsnorm_mxfp4_quant/h512_output_")
    assert (PROJECT / "tunegen_ops" / explanation.kernel).is_file()
    assert explanation.bucket.tokens == 8
    assert explanation.note == ""
    text = str(explanation)
    for part in (explanation.kernel, "measured", "programs_per_unit=1", "at most 16", "median_us 2.0", "H100"):
        assert part in text, (part, text)
    assert tunegen_ops.explain(op, 17, device=h100, hidden_size=512).bucket.tokens == 64
    h200 = tunegen_ops.explain(op, 1, device=DeviceKey("sm90", 132, 140), hidden_size=512)
    assert h200.kernel is not None
    assert "tunegen tune --op rmsnorm_mxfp4_quant --hidden-size 512" in h200.note
    assert tunegen_ops.explain(op, 1, device="cpu", hidden_size=512).kernel is None
    assert "reference" in str(tunegen_ops.explain(op, 1, device=h100, hidden_size=544))

    for call, hint in (
        (lambda: tunegen_ops.supports("rmsnorm_mxfp4_qant", hidden_size=512), "Did you mean 'rmsnorm_mxfp4_quant'?"),
        (lambda: tunegen_ops.supports(op, hiden_size=512), "Did you mean 'hidden_size'?"),
        (lambda: tunegen_ops.explain(op, 1, hidden_size=512, heads=8), "There is no size of rmsnorm_mxfp4_quant"),
        (lambda: tunegen_ops.explain(op, 1), "hidden_size=..."),
        (lambda: tunegen_ops.explain(op, 1, hidden_size=512, rounding="up"), "rounding must be one of"),
    ):
        try:
            call()
        except ValueError as error:
            assert hint in str(error), error
            assert "rounding" in hint or isinstance(error, PackNameError)
        else:
            raise AssertionError(hint)


def check_warmup_on_cpu_does_nothing() -> None:
    import tunegen_ops

    assert tunegen_ops.warmup(device="cpu").kernels == 0


def check_warmup_refuses_what_the_pack_lacks() -> None:
    import tunegen_ops
    from tunegen_ops.runtime.api import PackNameError

    for chosen, hint in (
        ({"ops": "rmsnorm_mxfp4_qant"}, "Did you mean 'rmsnorm_mxfp4_quant'?"),
        ({"ops": ["silu_mul_mxfp4_quant"]}, "no op 'silu_mul_mxfp4_quant', but 'dynamic_mxfp4_quant', 'rmsnorm_"),
        ({"hiden_size": 512}, "Did you mean 'hidden_size'?"),
        ({"hidden_size": (512, 544)}, "no hidden_size 544, but 96, 512."),
        ({"num_heads": 4, "ops": "rmsnorm_mxfp4_quant"}, "it has no num_heads 4, but nothing."),
        ({"hidden_size": 521, "ops": "rmsnorm_mxfp4_quant"}, "it has no hidden_size 521, but 96, 512."),
        ({"hidden_size": ()}, "none of all these sizes together"),
        ({"variants": ["none", "act"]}, "no variant 'act', but 'none'"),
        (
            {"variants": "sum_output", "ops": "rmsnorm_mxfp4_quant"},
            "no op 'rmsnorm_mxfp4_quant', but 'rmsnorm_add_mxfp4",
        ),
    ):
        try:
            tunegen_ops.warmup(device="cpu", **chosen)
        except PackNameError as error:
            assert hint in str(error), error
        else:
            raise AssertionError(hint)
    chosen = {"ops": "rmsnorm_mxfp4_quant", "variants": ("none", "norm_output"), "hidden_size": (96, 512)}
    assert tunegen_ops.warmup(device="cpu", **chosen).kernels == 0


def check_importing_again_changes_nothing() -> None:
    import tunegen_ops

    call = torch.load(EXPECTED)[0]
    importlib.reload(tunegen_ops)
    assert_equal(call, outputs_of(call))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tunegen_ops"]:
        del sys.modules[name]
    again = importlib.import_module("tunegen_ops")
    assert again is not tunegen_ops
    del tunegen_ops
    assert_equal(call, outputs_of(call))


def main() -> None:
    sys.meta_path.insert(0, Blocker())
    sys.path.insert(0, str(PROJECT))
    results = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
            except Exception:  # whatever it is, it is that check's result, and the test that reads it fails
                results[name] = traceback.format_exc()
            else:
                results[name] = ""
    print(json.dumps(results))


if __name__ == "__main__":
    main()
