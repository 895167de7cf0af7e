"""Which kernels a warm-up of a part of a pack compiles; no GPU is needed for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from synthetic import ROPE_SIZES, make_entry, make_rope_entry

from tunegen.oppack import emit_pack
from tunegen.ops.mla_rope import INPLACE
from tunegen.runtime.families import mla_rope
from tunegen.runtime.manifest import read_manifest
from tunegen.runtime.table import Table, has_sizes
from tunegen.runtime.warmup import Wanted
from tunegen.runtime.warmup.jobs import jobs_of
from tunegen.targets import get_target

NORM, ADD = "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"
HEADS = ROPE_SIZES["num_heads"]
NORMS = {(NORM, size, rounding) for size in (96, 192) for rounding in ("none", "output", "norm_output")}
USUAL = NORMS | {(INPLACE, HEADS, "act,fp8"), (INPLACE, HEADS, "none,fp8")}
# What is asked for, and op, first size and variant of the kernels that it has compiled.
SELECTIONS: dict[str, tuple[Wanted, set[tuple[str, int, str]]]] = {
    "nothing": (Wanted(), USUAL),
    "an op": (Wanted(ops=[NORM]), NORMS),
    "another": (Wanted(ops=[ADD]), set()),
    "a rounding": (Wanted(variants=["norm_output"]), {(NORM, 96, "norm_output"), (NORM, 192, "norm_output")}),
    "an unusual variant": (Wanted(variants=["act,neox,fp8"]), {(INPLACE, HEADS, "act,neox,fp8")}),
    "a size": (Wanted(sizes={"hidden_size": (192,)}), {kernel for kernel in NORMS if kernel[1] == 192}),
    "sizes of several ops": (
        Wanted(variants=["none", "act,fp8"], sizes={"hidden_size": (96,), "num_heads": (HEADS,)}),
        {(NORM, 96, "none"), (INPLACE, HEADS, "act,fp8")},
    ),
    "a size that is not there": (Wanted(sizes={"num_heads": (HEADS + 1,)}), set()),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sm90 = get_target("sm90")
    entries = [*(make_entry(NORM, size, sm90) for size in (96, 192)), make_rope_entry(INPLACE, "act,fp8", sm90)]
    return emit_pack(entries, tmp_path_factory.mktemp("pack") / "p").package


@pytest.mark.parametrize("name", SELECTIONS)
def test_what_is_asked_for_is_compiled(name: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mla_rope, "MAX_POSITION", 64)
    manifest, cpu = read_manifest(package), torch.device("cpu")
    wanted, expected = SELECTIONS[name]
    jobs = list(jobs_of(package, Table(manifest), get_target("sm90").device, cpu, None, wanted))
    files = {
        (entry.op, next(iter(entry.shape.values())), variant): {package / b.kernels[variant] for b in entry.buckets}
        for entry in manifest.entries
        for variant in entry.variants
    }
    assert {job.path for job in jobs} == {path for kernel in expected for path in files[kernel]}


def test_a_shape_has_sizes() -> None:
    shape = {"hidden_size": 1536, "second_size": 512}
    assert has_sizes(shape, {})
    assert has_sizes(shape, {"hidden_size": [7168, 1536]})
    assert has_sizes(shape, {"hidden_size": [1536], "num_heads": [16]})
    assert not has_sizes(shape, {"num_heads": [16]})
    assert not has_sizes(shape, {"hidden_size": [1536], "second_size": [128]})
