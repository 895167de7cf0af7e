"""The reference's write of cache rows, which a captured graph can hold, against a loop over tokens."""

from __future__ import annotations

import itertools

import pytest
import torch

from tunegen.runtime.reference.mla_rope import existing_slots, write_rows

WIDTH = 24
DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.uint8)
# Slots of a cache of twelve.
SLOTS = {
    "all kept": [7, 0, 11, 3],
    "one token": [5],
    "one token without a slot": [-1],
    "none kept": [-1, -1, -1],
    "the first has none": [-1, 4, 0],
    "-1 many times": [-1, 4, -1, -1, 0, -1],
    "the last has none": [0, 11, -1],
    "slot 0 beside tokens without a slot": [-1, 0, -1],
    "slot 0 free beside tokens without a slot": [-1, 6, -1],
    "every slot": list(range(11, -1, -1)),
    "no tokens": [],
}


def random_bits(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """NaN of all kinds among them."""
    generator = torch.Generator().manual_seed(seed)
    size = (*shape[:-1], shape[-1] * dtype.itemsize)
    return torch.randint(0, 256, size, generator=generator).to(torch.uint8).view(dtype)


def make_cache(layout: str, dtype: torch.dtype) -> torch.Tensor:
    """Twelve slots: flat, in blocks, in blocks of one, or in blocks with gaps between slots and between blocks."""
    if layout == "gaps":
        return random_bits(3, 5, WIDTH + 8, dtype=dtype, seed=1)[:, :4, :WIDTH]
    shape = {"flat": (12,), "blocks": (3, 4), "blocks of one": (12, 1), "one block": (1, 12)}[layout]
    return random_bits(*shape, WIDTH, dtype=dtype, seed=1)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["flat", "blocks", "blocks of one", "one block", "gaps"])
@pytest.mark.parametrize("name", SLOTS)
def test_rows_are_those_of_a_loop(name: str, layout: str, dtype: torch.dtype) -> None:
    slots = torch.tensor(SLOTS[name], dtype=torch.int64)
    cache, rows = make_cache(layout, dtype), random_bits(len(slots), WIDTH, dtype=dtype, seed=2)
    whole = torch.empty(0, dtype=torch.uint8).set_(cache.untyped_storage())
    expected = whole.clone()
    view = torch.empty(0, dtype=dtype).set_(expected.untyped_storage(), 0, cache.shape, cache.stride())
    for token, slot in enumerate(SLOTS[name]):
        if slot >= 0:
            where = view[slot] if view.dim() == 2 else view[slot // view.shape[1], slot % view.shape[1]]
            where.view(torch.uint8).copy_(rows[token].view(torch.uint8))
    before = rows.clone()
    write_rows(cache, slots, rows)
    assert torch.equal(whole, expected)
    assert torch.equal(as_bytes(rows), as_bytes(before))
    assert slots.tolist() == SLOTS[name]


@pytest.mark.parametrize("shape", [(0, WIDTH), (0, 4, WIDTH), (4, 0, WIDTH)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_cache_without_slots(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    cache = torch.empty(shape, dtype=dtype)
    slots = existing_slots(torch.tensor([0, -1, 5]), cache, 4)
    assert slots.tolist() == [-1, -1, -1, -1]
    write_rows(cache, slots, random_bits(4, WIDTH, dtype=dtype, seed=0))


def test_slots_that_exist() -> None:
    for cache, mapping in itertools.product(
        (torch.empty(12, WIDTH), torch.empty(3, 4, WIDTH)), ([0, 11, 12, -1, -(2**40), 2**40], [])
    ):
        slots = existing_slots(torch.tensor(mapping, dtype=torch.int64), cache, 8)
        assert slots.clamp(min=-1).tolist() == ([0, 11, -1, -1, -1, -1, -1, -1] if mapping else [-1] * 8)


def test_no_value_is_read_and_no_shape_depends_on_one() -> None:
    """Meta tensors have no values: what asks for one fails there, as it does in a graph that is captured."""
    for dtype, blocks in itertools.product((torch.bfloat16, torch.float8_e4m3fn), ((12,), (3, 4))):
        cache = torch.empty((*blocks, WIDTH), dtype=dtype, device="meta")
        slots = existing_slots(torch.empty(5, dtype=torch.int64, device="meta"), cache, 6)
        write_rows(cache, slots, torch.empty((6, WIDTH), dtype=dtype, device="meta"))
