"""Loads, stores, LDS and permutes: values, ranges, races, waits and hazards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bench_of_instructions import LDS_BYTES, machine, run, set_exec, waves_of, words

from tunegen.execute.errors import ExecutionError
from tunegen.execute.launch import _add_tensor
from tunegen.execute.memory import Region
from tunegen.execute.waves import Waves

RECORDS = 0x7FFFFFFE


def with_buffer(tensor: torch.Tensor, records: int = RECORDS) -> Waves:
    """A wave with the tensor as its memory, a descriptor of it in s[4:7] and its address in s[8:9]."""
    on = machine()
    _add_tensor(on.memory, "x", tensor)
    waves = Waves(on, np.zeros(1, np.int64), np.zeros(1, np.int64))
    waves.set_s64(4, np.array([tensor.data_ptr()], np.uint64))
    waves.set_s(6, np.array([records], np.uint32))
    waves.set_s(7, np.array([0x27000], np.uint32))
    waves.set_s64(8, np.array([tensor.data_ptr()], np.uint64))
    return waves


def lanes(values: object) -> np.ndarray:
    return np.broadcast_to(np.asarray(values, np.uint32), (1, 64))


def random_bytes(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("family", ["buffer", "global saddr", "global"])
@pytest.mark.parametrize(
    ("width", "size"), [("ubyte", 1), ("ushort", 2), ("dword", 4), ("dwordx2", 8), ("dwordx3", 12), ("dwordx4", 16)]
)
@pytest.mark.parametrize("misaligned", [0, 1])
def test_loads(family: str, width: str, size: int, misaligned: int) -> None:
    data = random_bytes(64 * 16 + 40)
    waves = with_buffer(data)
    offsets = np.random.default_rng(0).permutation(64) * size + misaligned
    waves.v[20] = lanes(offsets)
    count = max(size // 4, 1)
    register = "v0" if count == 1 else f"v[0:{count - 1}]"
    address = np.uint64(data.data_ptr()) + offsets.astype(np.uint64)
    waves.v[22], waves.v[23] = (lanes((address >> np.uint64(s)) & np.uint64(0xFFFFFFFF)) for s in (0, 32))
    text = {
        "buffer": f"buffer_load_{width} {register}, v20, s[4:7], 0 offen offset:8",
        "global saddr": f"global_load_{width} {register}, v20, s[8:9] offset:8",
        "global": f"global_load_{width} {register}, v[22:23], off offset:8",
    }[family]
    run(waves, text, "s_waitcnt vmcnt(0)")
    for lane, offset in enumerate(offsets):
        expected = data[offset + 8 : offset + 8 + size].numpy().tobytes().ljust(4 * count, b"\0")
        got = b"".join(int(waves.v[i][0, lane]).to_bytes(4, "little") for i in range(count))
        assert got == expected


@pytest.mark.parametrize(("width", "size"), [("byte", 1), ("short", 2), ("dword", 4), ("dwordx2", 8), ("dwordx4", 16)])
def test_stores_of_active_lanes(width: str, size: int) -> None:
    data = torch.zeros(64 * 16, dtype=torch.uint8)
    waves = with_buffer(data)
    rng = np.random.default_rng(1)
    count = max(size // 4, 1)
    for i in range(count):
        waves.v[i] = words(rng, (1, 64))
    waves.v[20] = lanes(np.arange(64) * size)
    set_exec(waves, 0xFFFF_0000_FFFF_0F0F)
    register = "v0" if count == 1 else f"v[0:{count - 1}]"
    run(waves, f"buffer_store_{width} {register}, v20, s[4:7], 0 offen")
    for lane in range(64):
        stored = b"".join(int(waves.v[i][0, lane]).to_bytes(4, "little") for i in range(count))[:size]
        active = 0xFFFF_0000_FFFF_0F0F >> lane & 1
        assert data[lane * size : (lane + 1) * size].numpy().tobytes() == (stored if active else bytes(size))


def test_half_registers() -> None:
    data = random_bytes(256)
    waves = with_buffer(data)
    waves.v[20] = lanes(np.arange(64) * 2)
    waves.v[0] = waves.v[1] = lanes(0xAAAABBBB)
    run(waves, "buffer_load_short_d16 v0, v20, s[4:7], 0 offen", "buffer_load_short_d16_hi v1, v20, s[4:7], 0 offen")
    run(waves, "s_waitcnt vmcnt(0)", "buffer_store_short_d16_hi v1, v20, s[4:7], 0 offen offset:128")
    halves = data[:128].view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
    assert (waves.v[0][0] == (halves | 0xAAAA0000)).all()
    assert (waves.v[1][0] == (halves << 16 | 0xBBBB)).all()
    assert torch.equal(data[128:], data[:128])


def test_a_lane_outside_of_a_buffer_loads_zero_and_stores_nothing() -> None:
    data = random_bytes(256)
    before = data.clone()
    waves = with_buffer(data, records=200)
    waves.v[20] = lanes(np.where(np.arange(64) < 50, np.arange(64) * 4, 0x80000000))
    run(waves, "buffer_load_dword v0, v20, s[4:7], 0 offen", "s_waitcnt vmcnt(0)")
    assert (waves.v[0][0, :50] == data.numpy().view(np.uint32)[:50]).all()
    assert (waves.v[0][0, 50:] == 0).all()
    waves.v[1] = lanes(0)
    run(waves, "buffer_store_dword v1, v20, s[4:7], 0 offen offset:100")
    assert torch.equal(data[:100], before[:100])
    assert torch.equal(data[200:], before[200:])
    assert not data[100:200].any()


@pytest.mark.parametrize(
    ("tensor", "offset", "writes"),
    [
        (torch.zeros(64), 256, False),
        (torch.zeros(64), -4, False),
        (torch.zeros(64), 253, True),
        (torch.zeros(100)[10:74], 256, True),
        (torch.zeros(4, 100)[:, :64], 256, False),
        (torch.zeros(4, 100)[:, :64], 254, False),
        (torch.zeros(4, 100)[:, :64], 396, True),
    ],
)
def test_an_access_outside_of_the_tensors_is_an_error(tensor: torch.Tensor, offset: int, writes: bool) -> None:
    waves = with_buffer(tensor)
    address = np.uint64(tensor.data_ptr() + offset)
    waves.v[22] = lanes(address & np.uint64(0xFFFFFFFF))
    waves.v[23] = lanes(address >> np.uint64(32))
    text = "global_store_dword v[22:23], v0, off" if writes else "global_load_dword v0, v[22:23], off"
    with pytest.raises(
        ExecutionError, match=f"{'writes' if writes else 'reads'} 4 bytes outside .* byte {offset} of x"
    ):
        run(waves, text)


def test_elements_of_strided_tensors_are_inside() -> None:
    for tensor in (torch.zeros(4, 100)[:, :64], torch.zeros(3, 5, 40)[:, 1:4, :8], torch.zeros(64).expand(3, 64)):
        strides = tuple(4 * s for s in tensor.stride())
        region = Region.of("x", 0, tuple(tensor.shape), strides, 4)
        inside = {sum(i * s for i, s in zip(at, strides, strict=True)) for at in np.ndindex(*tensor.shape)}
        reached = np.arange(-8, region.end + 8, 4)
        assert {int(x) for x in reached[region.covers(reached, 4)]} == inside


def test_scalar_loads() -> None:
    data = random_bytes(128)
    waves = with_buffer(data)
    run(waves, "s_load_dwordx4 s[20:23], s[8:9], 0x10", "s_load_dword s24, s[8:9], 0x7c", "s_waitcnt lgkmcnt(0)")
    expected = data.numpy().view(np.uint32)
    assert [int(waves.s[20 + i][0]) for i in range(4)] == expected[4:8].tolist()
    assert int(waves.s[24][0]) == expected[31]
    with pytest.raises(ExecutionError, match="outside the buffers"):
        run(waves, "s_load_dwordx2 s[24:25], s[8:9], 0x7c")


def test_lanes_that_store_other_values_to_one_address() -> None:
    waves = with_buffer(torch.zeros(64))
    waves.v[0], waves.v[20] = lanes(7), lanes(0)
    run(waves, "buffer_store_dword v0, v20, s[4:7], 0 offen")
    waves.v[0] = lanes(np.arange(64))
    with pytest.raises(ExecutionError, match="which of them stays"):
        run(waves, "buffer_store_dword v0, v20, s[4:7], 0 offen")


def test_workgroups_that_depend_on_each_other() -> None:
    on = machine()
    data = torch.zeros(128, dtype=torch.int32)
    _add_tensor(on.memory, "x", data)
    waves = waves_of(2, on=on)
    waves.set_s64(8, np.full(2, data.data_ptr(), np.uint64))
    waves.v[20] = np.arange(128, dtype=np.uint32).reshape(2, 64) * 4
    run(waves, "global_store_dword v20, v20, s[8:9]")
    on.memory.check_races()
    waves.v[20] = np.arange(64, 192, dtype=np.uint32).reshape(2, 64) % 128 * 4
    run(waves, "global_load_dword v0, v20, s[8:9]")
    with pytest.raises(ExecutionError, match="Workgroup 0 reads byte 256 of x, which workgroup 1 writes"):
        on.memory.check_races()


# --- LDS ---


@pytest.mark.parametrize(
    ("write", "read", "size"),
    [
        ("ds_write_b8 v20, v0", "ds_read_u8 v4, v20", 1),
        ("ds_write_b16 v20, v0", "ds_read_u16 v4, v20", 2),
        ("ds_write_b32 v20, v0", "ds_read_b32 v4, v20", 4),
        ("ds_write_b64 v20, v[0:1] offset:8", "ds_read_b64 v[4:5], v20 offset:8", 8),
        ("ds_write_b128 v20, v[0:3]", "ds_read_b128 v[4:7], v20", 16),
        ("ds_write2_b32 v20, v0, v1 offset0:3 offset1:200", "ds_read2_b32 v[4:5], v20 offset0:3 offset1:200", 8),
        ("ds_write2_b64 v20, v[0:1], v[2:3] offset1:100", "ds_read2_b64 v[4:7], v20 offset1:100", 16),
        ("ds_write2st64_b32 v20, v0, v1 offset1:7", "ds_read2st64_b32 v[4:5], v20 offset1:7", 8),
    ],
)
def test_lds(write: str, read: str, size: int) -> None:
    waves = waves_of(2)
    rng = np.random.default_rng(3)
    for i in range(4):
        waves.v[i] = words(rng, (2, 64))
        waves.v[4 + i] = np.zeros((2, 64), np.uint32)
    step = 4 if "2" in write.split(maxsplit=1)[0][8:10] and "b32" in write else 8 if "write2_b64" in write else size
    waves.v[20] = np.stack([rng.permutation(64), rng.permutation(64)]).astype(np.uint32) * step
    run(waves, write, read, "s_waitcnt lgkmcnt(0)")
    mask = np.uint32(2 ** (8 * min(size, 4)) - 1)
    for i in range(max(size // 4, 1)):
        assert (waves.v[4 + i] == waves.v[i] & mask).all()


def test_lds_two_offsets_are_counted_in_their_units() -> None:
    waves = waves_of()
    waves.v[0] = np.arange(64, dtype=np.uint32)[None]
    waves.v[20] = waves.v[0] * 4
    run(waves, "ds_write_b32 v20, v0 offset:512", "ds_read2st64_b32 v[4:5], v20 offset0:2 offset1:2")
    run(waves, "ds_read2_b32 v[6:7], v20 offset0:128 offset1:128")
    for i in (4, 5, 6, 7):
        assert (waves.v[i] == waves.v[0]).all()


def test_lds_outside() -> None:
    waves = waves_of()
    waves.v[20] = lanes(LDS_BYTES - 2)
    with pytest.raises(ExecutionError, match=f"the workgroup has {LDS_BYTES} bytes of LDS"):
        run(waves, "ds_read_b32 v0, v20")


def two_waves() -> Waves:
    """Two waves of one workgroup; v0 is the wave's number, v20 and v21 addresses of their own and of the other."""
    waves = Waves(machine(), np.zeros(2, np.int64), np.arange(2))
    lane = np.arange(64, dtype=np.uint32)
    waves.v[0] = np.broadcast_to(np.array([[1], [2]], np.uint32), (2, 64))
    waves.v[20] = np.stack([lane, lane + 64]) * np.uint32(4)
    waves.v[21] = waves.v[20][::-1]
    return waves


def barrier(waves: Waves) -> None:
    waves.epoch = waves.epoch + 1
    waves.machine.lds.barrier(waves)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ds_write_b32 v20, v0", "ds_read_b32 v1, v21"),
        ("ds_read_b32 v1, v20", "ds_write_b32 v21, v0"),
        ("ds_write_b32 v20, v0", "ds_write_b32 v21, v0"),
    ],
)
def test_lds_shared_without_a_barrier_is_a_race(first: str, second: str) -> None:
    waves = two_waves()
    run(waves, first, "s_waitcnt lgkmcnt(0)")
    with pytest.raises(ExecutionError, match="no s_barrier"):
        run(waves, second)
    waves = two_waves()
    run(waves, first, "s_waitcnt lgkmcnt(0)")
    barrier(waves)
    run(waves, second)
    # Under way at the barrier is as if there were none.
    waves = two_waves()
    run(waves, first)
    barrier(waves)
    with pytest.raises(ExecutionError, match="no s_barrier"):
        run(waves, second)


def test_lds_that_waves_read_together_or_write_alike_is_no_race() -> None:
    waves = two_waves()
    waves.v[21] = waves.v[20] % np.uint32(256)
    waves.v[0] = np.stack([np.arange(64), np.arange(64)]).astype(np.uint32)
    run(waves, "ds_write_b32 v21, v0", "ds_read_b32 v1, v21", "s_waitcnt lgkmcnt(0)")
    assert (waves.v[1] == waves.v[0]).all()
    with pytest.raises(ExecutionError, match=r"wave [01] has read"):
        run(waves, "v_mov_b32_e32 v2, 5", "ds_write_b32 v21, v2")


@pytest.mark.parametrize("active", [2**64 - 1, 0xFFFF_FFFF_0000_FFFF])
def test_permutes(active: int) -> None:
    waves = waves_of()
    rng = np.random.default_rng(4)
    data, source = np.arange(100, 164, dtype=np.uint32), rng.permutation(64).astype(np.uint32)
    waves.v[1], waves.v[2] = data[None], (source * 4 + 256 * 3)[None]
    for i in (0, 3, 4, 5, 6):
        waves.v[i] = np.full((1, 64), 9, np.uint32)
    set_exec(waves, active)
    run(waves, "ds_bpermute_b32 v0, v2, v1", "ds_swizzle_b32 v3, v1 offset:swizzle(SWAP,16)")
    run(waves, "ds_permute_b32 v4, v2, v1", 'ds_swizzle_b32 v5, v1 offset:swizzle(BITMASK_PERM,"00p1i")')
    run(waves, "ds_swizzle_b32 v6, v1 offset:swizzle(QUAD_PERM,3,0,0,1)", "s_waitcnt lgkmcnt(0)")

    def value(lane: int) -> int:
        return int(data[lane]) if active >> lane & 1 else 0

    for lane in range(64):
        if not active >> lane & 1:
            assert [int(waves.v[i][0, lane]) for i in (0, 3, 4, 5, 6)] == [9] * 5
            continue
        assert waves.v[0][0, lane] == value(int(source[lane]))
        assert waves.v[3][0, lane] == value(lane ^ 16)
        (writer,) = np.flatnonzero(source == lane)
        assert waves.v[4][0, lane] == value(int(writer))
        assert waves.v[5][0, lane] == value(lane // 32 * 32 + (((lane % 32 & 5) | 2) ^ 1))
        assert waves.v[6][0, lane] == value(lane // 4 * 4 + (3, 0, 0, 1)[lane % 4])


def test_scratch() -> None:
    waves = waves_of()
    waves.v[0], waves.v[1] = lanes(5), lanes(6)
    run(waves, "scratch_store_dwordx2 off, v[0:1], off offset:16", "scratch_load_dword v2, off, off offset:20")
    run(waves, "s_waitcnt vmcnt(0)", "v_mov_b32_e32 v3, v2")
    assert (waves.v[3] == 6).all()
    with pytest.raises(ExecutionError, match="of scratch, of which a lane has 4096"):
        run(waves, "scratch_load_dword v2, off, off offset:4096")


# --- Waits ---


@pytest.mark.parametrize(
    ("lines", "good"),
    [
        (["LOAD v0", "v_mov_b32_e32 v9, v0"], False),
        (["LOAD v0", "s_waitcnt lgkmcnt(0)", "v_mov_b32_e32 v9, v0"], False),
        (["LOAD v0", "s_waitcnt vmcnt(0)", "v_mov_b32_e32 v9, v0"], True),
        (["LOAD v0", "LOAD v1", "s_waitcnt vmcnt(1)", "v_mov_b32_e32 v9, v0"], True),
        (["LOAD v0", "LOAD v1", "s_waitcnt vmcnt(1)", "v_mov_b32_e32 v9, v1"], False),
        (["LOAD v0", "STORE v5", "s_waitcnt vmcnt(1)", "v_mov_b32_e32 v9, v0"], True),
        (["LOAD v0", "v_mov_b32_e32 v0, 1"], False),
        (["LOAD v0", "LOAD v0", "s_waitcnt vmcnt(0)", "v_mov_b32_e32 v9, v0"], True),
        (["LOAD v0", "STORE v0"], False),
        (["LDS v0", "v_mov_b32_e32 v9, v0"], False),
        (["LDS v0", "LDS v1", "s_waitcnt lgkmcnt(1)", "v_mov_b32_e32 v9, v0"], True),
        (["SMEM s20", "v_mov_b32_e32 v9, s20"], False),
        (["SMEM s20", "s_waitcnt lgkmcnt(0)", "v_mov_b32_e32 v9, s20"], True),
        # Scalar loads may come in any order.
        (["SMEM s20", "SMEM s21", "s_waitcnt lgkmcnt(1)", "v_mov_b32_e32 v9, s20"], False),
        (["SMEM s20", "LDS v0", "s_waitcnt lgkmcnt(1)", "v_mov_b32_e32 v9, s20"], False),
        (["LDS v0", "SMEM s20", "s_waitcnt lgkmcnt(1)", "v_mov_b32_e32 v9, v0"], False),
        (["LOAD v0", *["LOAD v1"] * 63, "v_mov_b32_e32 v9, v0"], True),
        (["LOAD v0", *["LOAD v1"] * 62, "v_mov_b32_e32 v9, v0"], False),
    ],
)
def test_waits(lines: list[str], good: bool) -> None:
    waves = with_buffer(torch.zeros(64))
    waves.v[20] = lanes(np.arange(64) * 4)
    for i in (0, 5):
        waves.v[i] = waves.v[20]
    forms = {
        "LOAD": "buffer_load_dword {}, v20, s[4:7], 0 offen",
        "STORE": "buffer_store_dword {}, v20, s[4:7], 0 offen",
        "LDS": "ds_read_b32 {}, v20",
        "SMEM": "s_load_dword {}, s[8:9], 0x0",
    }
    texts = [forms[line.split()[0]].format(line.split()[1]) if line.split()[0] in forms else line for line in lines]
    if good:
        run(waves, *texts)
        return
    with pytest.raises(ExecutionError, match="whose load may not have come: no s_waitcnt"):
        run(waves, *texts)


# --- Hazards: what must stand between two instructions ---


HAZARDS = [
    ("v_mov_b32_e32 v1, v2", "v_mov_b32_dpp v3, v1 row_mirror row_mask:0xf bank_mask:0xf", 2),
    ("v_mov_b32_e32 v1, v2", "v_readlane_b32 s0, v1, 3", 1),
    ("v_mov_b32_e32 v1, v2", "v_permlane32_swap_b32_e32 v1, v3", 2),
    ("v_cmp_eq_u32_e64 s[0:1], v1, v2", "v_cndmask_b32_e64 v3, v1, v2, s[0:1]", 2),
    ("v_readlane_b32 s4, v1, 3", "buffer_load_dword v0, v20, s[4:7], 0 offen", 5),
    ("v_readlane_b32 s0, v1, 3", "v_readlane_b32 s1, v2, s0", 4),
    ("v_div_scale_f32 v1, vcc, v2, v2, v3", "v_div_fmas_f32 v4, v5, v6, v7", 4),
    ("v_rsq_f32_e32 v1, v2", "v_mul_f32_e32 v3, v1, v1", 1),
    ("v_cvt_scalef32_pk_fp4_f32 v1, v2, v3, v4 op_sel:[0,0,1,0]", "v_cvt_scalef32_pk_fp4_f32 v1, v2, v3, v4", 1),
    ("v_cvt_pk_fp8_f32 v1, v2, v3 op_sel:[0,0,1]", "v_mov_b32_e32 v4, v1", 1),
    ("v_or_b32_sdwa v1, v2, v3 dst_sel:WORD_1 dst_unused:UNUSED_PAD src0_sel:DWORD src1_sel:DWORD",
     "v_mov_b32_e32 v4, v1", 1),
    ("buffer_store_dwordx4 v[0:3], v20, s[8:11], 0 offen", "v_mov_b32_e32 v2, 0", 2),
    ("v_cmpx_eq_u32_e64 s[0:1], v1, v1", "v_mov_b32_dpp v3, v2 row_mirror row_mask:0xf bank_mask:0xf", 5),
]  # fmt: skip
NO_HAZARDS = [
    ("v_cvt_scalef32_pk_fp4_f32 v1, v2, v3, v4", "v_cvt_scalef32_pk_fp4_f32 v1, v2, v3, v4 op_sel:[0,0,1,0]"),
    ("v_rsq_f32_e32 v1, v2", "v_rsq_f32_e32 v3, v1"),
    ("v_mov_b32_e32 v1, v2", "v_mov_b32_dpp v3, v2 row_mirror row_mask:0xf bank_mask:0xf"),
    ("buffer_store_dwordx2 v[0:1], v20, s[8:11], 0 offen", "v_mov_b32_e32 v1, 0"),
    ("buffer_store_dwordx4 v[0:3], v20, s[8:11], s12 offen", "v_mov_b32_e32 v1, 0"),
    ("s_mov_b32 s4, 0", "v_mov_b32_e32 v1, s4"),
]


def for_hazards() -> Waves:
    tensor = torch.zeros(64 * 4)
    waves = with_buffer(tensor)
    for i in range(8):
        waves.v[i] = lanes(0)
    waves.v[20] = lanes(np.arange(64) * 16)
    for i in range(4):
        waves.set_s(8 + i, waves.s[4 + i])
    waves.set_s(12, np.zeros(1, np.uint32))
    return waves


@pytest.mark.parametrize(("producer", "consumer", "states"), HAZARDS)
def test_hazards(producer: str, consumer: str, states: int) -> None:
    missing = [] if states == 1 else [f"s_nop {states - 2}"]
    with pytest.raises(ExecutionError, match=f"{states} wait states must stand there"):
        run(for_hazards(), producer, *missing, consumer)
    waves = for_hazards()
    run(waves, producer, f"s_nop {states - 1}")
    if "buffer_load" in consumer:
        waves.set_s(4, waves.s[8])  # the descriptor as it was
    run(waves, consumer)


@pytest.mark.parametrize(("producer", "consumer"), NO_HAZARDS)
def test_what_is_no_hazard(producer: str, consumer: str) -> None:
    run(for_hazards(), producer, consumer)
