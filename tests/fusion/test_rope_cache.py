"""F3 in graphs: each way to write RoPE, both cache ops, several layers; what must not match; outputs and caches."""

from __future__ import annotations

import re
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import foreign_ops
import pytest
import torch
from graphs import Compiled
from packs import ask_for_h100
from ropes import ROPES, interleaved, to_halves
from torch import Tensor
from torch._inductor import config as inductor_config

R, D, H, POSITIONS, BLOCK = 32, 16, 3, 64, 4
FUSED = "rope + cat + concat_and_cache_mla -> mla_rope_cache"
CACHE_OPS = ("_C_cache_ops", "fusion_ops")


@pytest.fixture(scope="module", autouse=True)
def _foreign() -> None:
    foreign_ops.define()


def normal(*size: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Attention(torch.nn.Module):
    """The part of an MLA layer before attention, and a product with the cache in place of it."""

    def __init__(self, rope: Any, namespace: str, dtype: torch.dtype, seed: int, cache_dtype: str = "auto") -> None:
        super().__init__()
        self.w_uk = torch.nn.Buffer(normal(H, 8, R, dtype=dtype, seed=seed))
        self.w_kv = torch.nn.Buffer(normal(H * (8 + D), R + D, dtype=dtype, seed=seed + 1))
        self.scale = torch.nn.Buffer(torch.tensor([0.5]))
        self.rope, self.namespace, self.cache_dtype = rope, namespace, cache_dtype

    def forward(self, x: Tensor, positions: Tensor, table: Tensor, cache: Tensor, slots: Tensor) -> Tensor:
        q = x.view(-1, H, 8 + D)
        q_nope = torch.bmm(q[..., :8].transpose(0, 1), self.w_uk).transpose(0, 1)
        kv_c, k_pe = (x @ self.w_kv).split([R, D], dim=-1)
        q_pe, k_pe = self.rope(positions, q[..., 8:], k_pe.unsqueeze(1), table)
        write = getattr(torch.ops, self.namespace).concat_and_cache_mla
        write(kv_c, k_pe.squeeze(1), cache, slots, self.cache_dtype, self.scale)
        q_out = torch.cat((q_nope, q_pe), dim=-1)
        # Attention on fp8 bytes means nothing here; the cache itself is compared.
        rows = cache.view(-1, R + D) if self.cache_dtype == "auto" else torch.cat((kv_c, k_pe.squeeze(1)), dim=-1)
        scores = torch.softmax(q_out.float() @ rows.float().T, dim=-1)
        return (scores.sum(1) @ (rows.float() @ self.w_kv.T.float())).to(x.dtype) + k_pe.sum()


class Model(torch.nn.Module):
    """Layers, each with a cache of its own, that share positions, slots and the table."""

    def __init__(self, count: int = 1, **about: Any) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Attention(seed=10 * i, **about) for i in range(count))

    def forward(self, x: Tensor, positions: Tensor, table: Tensor, slots: Tensor, *caches: Tensor) -> Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x = x + layer(x, positions, table, cache, slots)
        return x


def inputs(tokens: int, layers: int, dtype: torch.dtype, table: torch.dtype, cache: torch.dtype) -> list[Tensor]:
    """Some tokens without a slot: padding."""
    generator = torch.Generator().manual_seed(tokens)
    slots = torch.randperm(80, generator=generator)[:tokens]
    slots[::5] = -1
    caches = [normal(20, BLOCK, R + D, seed=i).to(cache) for i in range(layers)]
    positions = torch.randint(0, POSITIONS, (tokens,), generator=generator)
    x = normal(tokens, H * (8 + D), dtype=dtype, seed=tokens)
    for tensor in (x, positions, slots):
        torch._dynamo.mark_dynamic(tensor, 0)
    return [x, positions, normal(POSITIONS, D, dtype=table, seed=9), slots, *caches]


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def check(model: Model, compiled: Compiled, given: list[Tensor]) -> None:
    """That outputs and caches are those of the model as it is, bit for bit: the reference rounds as the graph does."""
    eager = [tensor.clone() for tensor in given]
    expected, got = model(*eager), compiled(*given)
    assert torch.equal(got, compiled.expected[0])
    assert torch.equal(got, expected)
    for ours, theirs in zip(given, eager, strict=True):
        assert torch.equal(bits(ours), bits(theirs))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.bfloat16) for name in ROPES), ("interleaved", torch.float16), ("fp32", torch.float16)],
    ids=[*ROPES, "interleaved-fp16", "fp32-fp16"],
)
def test_rope(pack: ModuleType, name: str, dtype: torch.dtype) -> None:
    rope = ROPES[name]
    table = torch.float32 if rope.fp32_table else dtype
    model = Model(rope=rope.function, namespace="_C_cache_ops", dtype=dtype)
    fusion = pack.fusion.FusionPass()
    compiled = Compiled(model, fusion, dynamic=None)
    for tokens in (33, 6):
        check(model, compiled, inputs(tokens, 1, dtype, table, dtype))
    ((_, args, _),) = [call for call in compiled.calls if call[0] == "fusion_ops::mla_rope_cache"]
    assert args[-3:] == (rope.is_neox, False, rope.rounding)
    assert fusion.report().counts() == {FUSED: 1}
    assert {match.rounding for match in fusion.report().matches} == {rope.rounding}
    ops = compiled.ops()
    assert ops["fusion_ops::mla_rope_cache"] == 1
    # No other cache write, no gather of the table, no rotation left.
    assert not {"_C_cache_ops::concat_and_cache_mla", "_C::rotary_embedding", "aten::index", "aten::neg"} & set(ops)


def check_caches(pack: ModuleType, layers: int, namespace: str, cache: torch.dtype, version: int) -> None:
    kind = "auto" if cache == torch.bfloat16 else "fp8"
    model = Model(layers, rope=interleaved, namespace=namespace, dtype=torch.bfloat16, cache_dtype=kind)
    fusion = pack.fusion.FusionPass()
    with inductor_config.patch(enable_auto_functionalized_v2=version == 2):
        compiled = Compiled(model, fusion, dynamic=None)
        check(model, compiled, inputs(33, layers, torch.bfloat16, torch.bfloat16, cache))
    assert fusion.report().counts() == {FUSED: layers}
    assert compiled.ops()["fusion_ops::mla_rope_cache"] == layers
    assert compiled.ops()[f"{namespace}::concat_and_cache_mla"] == 0
    written = [args[6] for name, args, _ in compiled.calls if name == "fusion_ops::mla_rope_cache"]
    assert len({tensor.data_ptr() for tensor in written}) == layers


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("namespace", CACHE_OPS)
def test_layers(pack: ModuleType, namespace: str, version: int) -> None:
    check_caches(pack, 3, namespace, torch.bfloat16, version)


@pytest.mark.parametrize(
    ("cache", "namespace", "version"),
    [(torch.float8_e4m3fn, "_C_cache_ops", 1), (torch.float8_e4m3fn, "fusion_ops", 2), (torch.uint8, "fusion_ops", 1)],
    ids=["fp8-_C_cache_ops", "fp8-fusion_ops", "uint8-fusion_ops"],
)
def test_fp8_caches(pack: ModuleType, cache: torch.dtype, namespace: str, version: int) -> None:
    check_caches(pack, 1, namespace, cache, version)


# --- What is left alone ---


class Plain(Attention):
    """An assignment into the cache: slot -1 writes the last row."""

    def forward(self, x: Tensor, positions: Tensor, table: Tensor, cache: Tensor, slots: Tensor) -> Tensor:
        kv_c, k_pe = (x @ self.w_kv).split([R, D], dim=-1)
        q_pe, k_pe = interleaved(positions, x.view(-1, H, 8 + D)[..., 8:], k_pe.unsqueeze(1), table)
        cache.view(-1, R + D)[slots] = torch.cat((kv_c, k_pe.squeeze(1)), dim=-1)
        return x + q_pe.sum() + cache.float().mean().to(x.dtype)


def test_an_assignment_is_left_alone(pack: ModuleType) -> None:
    model = Model(rope=interleaved, namespace="_C_cache_ops", dtype=torch.bfloat16)
    model.layers[0] = Plain(interleaved, "_C_cache_ops", torch.bfloat16, 0)
    fusion = pack.fusion.FusionPass()
    given = inputs(33, 1, torch.bfloat16, torch.bfloat16, torch.bfloat16)
    last = given[4][-1, -1].clone()
    with pytest.warns(pack.TunegenPackWarning, match="nothing to fuse"):
        check(model, Compiled(model, fusion, dynamic=None), given)
    assert not torch.equal(given[4][-1, -1], last)
    assert fusion.report().matches == []


def halved(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers' DeepSeek-V3 leaves it: pairs in, halves out."""
    q, k = interleaved(positions, q, k, table)
    return to_halves(q), to_halves(k)


def only_k(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return q, interleaved(positions, q, k, table)[1]


def not_at_all(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return interleaved(positions, q, k, table)[0], k


def other_positions(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return interleaved(positions // 2, q, k, table)[0], interleaved(positions, q, k, table)[1]


def clamped(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    q, k = interleaved(positions, q, k, table)
    return q, k.clamp_max(1.0)


def scaled(positions: Tensor, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    return interleaved(positions, q, k, table * 2 + 1)[0], interleaved(positions, q, k, table)[1] * 2


LEFT_ALONE = {
    halved: "is not RoPE of any node before it",
    only_k: "no q is rotated alike",
    not_at_all: "is not the output of RoPE",
    other_positions: "no q is rotated alike",
    clamped: "is not RoPE of any node before it",
    scaled: "is not RoPE of any node before it",
}


@pytest.mark.parametrize("rope", LEFT_ALONE, ids=lambda rope: rope.__name__)
def test_left_alone(pack: ModuleType, rope: Any) -> None:
    model = Model(rope=rope, namespace="_C_cache_ops", dtype=torch.bfloat16)
    fusion = pack.fusion.FusionPass()
    with pytest.warns(pack.TunegenPackWarning, match="no pattern matched"):
        compiled = Compiled(model, fusion, dynamic=None)
        check(model, compiled, inputs(33, 1, torch.bfloat16, torch.bfloat16, torch.bfloat16))
    assert fusion.report().matches == []
    (miss,) = fusion.report().misses
    assert re.search(LEFT_ALONE[rope], miss.reason), miss.reason
    assert compiled.ops()["_C_cache_ops::concat_and_cache_mla"] == 1


def test_fp8_cache_of_unrounded_rope_is_left_alone(pack: ModuleType) -> None:
    """The graph rounds to bfloat16 and then to fp8, the pack's op with this rounding to fp8 alone."""
    rope = next(rope for rope in ROPES.values() if rope.rounding == "none")
    model = Model(rope=rope.function, namespace="_C_cache_ops", dtype=torch.bfloat16, cache_dtype="fp8")
    with pytest.warns(pack.TunegenPackWarning, match="no rounding of the pack is that"):
        compiled = Compiled(model, pack.fusion.FusionPass(), dynamic=None)
        check(model, compiled, inputs(33, 1, torch.bfloat16, torch.float32, torch.float8_e4m3fn))


def test_no_kernels(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack of these tests has kernels of norms alone."""
    ask_for_h100("fusion_ops", monkeypatch)
    model = Model(rope=interleaved, namespace="_C_cache_ops", dtype=torch.bfloat16)
    for allowed in (False, True):
        fusion = pack.fusion.FusionPass(allow_reference=allowed)
        compiled = Compiled(model, fusion, dynamic=None)
        about = pytest.warns(pack.TunegenPackWarning, match=f"no kernels of mla_rope_cache, num_heads {H}")
        with nullcontext() if allowed else about:
            compiled(*inputs(33, 1, torch.bfloat16, torch.bfloat16, torch.bfloat16))
        assert fusion.report().counts() == ({FUSED: 1} if allowed else {})
        assert compiled.ops()["fusion_ops::mla_rope_cache"] == allowed


def test_cache_op_of_the_pack(pack: ModuleType) -> None:
    cache, row = torch.zeros(2, 4, 12), torch.arange(36.0).view(3, 12)
    write = torch.ops.fusion_ops.concat_and_cache_mla
    write(row[:, :8], row[:, None, 8:], cache, torch.tensor([5, -1, 0]), "auto", torch.ones(1))
    expected = torch.zeros(8, 12)
    expected[5], expected[0] = row[0], row[2]
    assert torch.equal(cache.view(8, 12), expected)
    for bad, message in (((torch.zeros(8, 11), "auto"), "kv_cache must be"), ((cache, "fp8_ds_mla"), "kv_cache_dtype")):
        with pytest.raises(ValueError, match=message):
            write(row[:, :8], row[:, 8:], bad[0], torch.tensor([1]), bad[1], torch.ones(1))
    torch.library.opcheck(
        write.default, (row[:, :8], row[:, 8:], cache, torch.tensor([5, -1, 0]), "auto", torch.ones(1))
    )
