"""tuned_configs files: merging, staleness, damage, and those that ship."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tunegen.codegen.render import template_hash
from tunegen.configs import TunedBucket, TunedEntry, bucket_edges, load_entries, read_file, save_entries
from tunegen.errors import TunedFileError, UnknownNameError
from tunegen.ops import Problem, get_family
from tunegen.paths import tuned_configs_dir
from tunegen.runtime.device import DeviceKey
from tunegen.targets import get_target

H100 = DeviceKey("sm90", 132, 79)
H200 = DeviceKey("sm90", 132, 140)


def entry(
    hidden_size: int = 512, device: DeviceKey = H100, op: str = "rmsnorm_mxfp4_quant", trials: int = 1
) -> TunedEntry:
    family = get_family(op)
    config = family.default(Problem.of(op, {"hidden_size": hidden_size}), get_target("sm90"))
    buckets = [TunedBucket(1, 4, config, {"median_us": 2.0}), TunedBucket(16, None, config, {"median_us": 3.0})]
    return TunedEntry(
        op=op,
        target="sm90",
        device=device,
        shape={"hidden_size": hidden_size},
        variant="none",
        dtype="bfloat16",
        evidence="measured",
        template_hash=template_hash(family.template),
        environment={"device_name": "a GPU"},
        trials=trials,
        buckets=buckets,
    )


def test_round_trip_and_merge(tmp_path: Path) -> None:
    save_entries(tmp_path, [entry(512), entry(1536)])
    save_entries(tmp_path, [entry(512, trials=9), entry(512, H200), entry(512, op="dynamic_mxfp4_quant")])
    entries = load_entries(tmp_path)
    found = {(e.op, e.shape["hidden_size"], e.device.memory_gib): e.trials for e in entries}
    assert found == {
        ("rmsnorm_mxfp4_quant", 512, 79): 9,
        ("rmsnorm_mxfp4_quant", 1536, 79): 1,
        ("rmsnorm_mxfp4_quant", 512, 140): 1,
        ("dynamic_mxfp4_quant", 512, 79): 1,
    }
    assert entry(1536) in entries


def test_saving_is_deterministic(tmp_path: Path) -> None:
    save_entries(tmp_path / "a", [entry(512), entry(1536)])
    save_entries(tmp_path / "b", [entry(1536)])
    save_entries(tmp_path / "b", [entry(512)])
    name = "sm90/rmsnorm_mxfp4_quant.json"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = save_entries(tmp_path, [entry(512)])
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tunegen.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_entries(tmp_path, [entry(1536)])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_bucket_lookup() -> None:
    assert bucket_edges([1, 2, 4, 8, 16]) == [1, 2, 5, 11, None]
    tuned = entry()
    assert [tuned.bucket(count).tokens for count in (1, 4, 5, 16, 100000)] == [1, 1, 16, 16, 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON"),
        (lambda text: text.replace('"format": 1', '"format": 99'), "has format 1; this one has 99"),
        (lambda text: text.replace('"device"', '"devise"'), "entry 0: a field is missing or wrong"),
        (lambda text: text.replace('"measured"', '"guessed"'), "evidence must be one of measured, predicted"),
        (lambda text: text.replace('"num_warps"', '"num_wraps"'), "no config key 'num_wraps'"),
        (lambda text: text.replace('"num_warps": 1', '"num_warps": 5'), "num_warps must be one of"),
        (
            lambda text: text.replace('"op": "rmsnorm_mxfp4_quant"', '"op": "another"'),
            "a file is named <target>/<op>.json",
        ),
        (lambda text: "[]", "has format 1; this one has 'list'"),
    ],
)
def test_damaged_file(tmp_path: Path, change: object, message: str) -> None:
    (path,) = save_entries(tmp_path, [entry(512)])
    text = path.read_text()
    # pytest's parameters have no type of their own.
    damaged = change(text)  # type: ignore[operator]  # parametrised as an object
    assert damaged != text
    path.write_text(damaged)
    with pytest.raises(TunedFileError, match=message) as error:
        read_file(path)
    assert str(path) in str(error.value)


def test_missing_folder_and_unknown_target(tmp_path: Path) -> None:
    with pytest.raises(TunedFileError, match="no tuned_configs folder"):
        load_entries(tmp_path / "nowhere")
    with pytest.raises(UnknownNameError, match="no target 'sm9'"):
        load_entries(tmp_path, ["sm9"])


def test_an_entry_of_another_template_is_stale(tmp_path: Path) -> None:
    old = dataclasses.replace(entry(), template_hash="0" * 12)
    old.buckets[0].config["a_knob_of_old"] = 1
    save_entries(tmp_path, [old])
    (read,) = load_entries(tmp_path)
    assert read.stale
    assert not entry(1536).stale


def test_an_entry_is_fresh_while_its_kernels_stay_the_same(tmp_path: Path) -> None:
    tuned = entry(512)
    known = dataclasses.replace(tuned, template_hash="0" * 12, kernels_hash=tuned.rendered_hash())
    save_entries(tmp_path, [known])
    assert load_entries(tmp_path) == [known]
    assert not known.stale
    other = dataclasses.replace(tuned.buckets[0], config={**tuned.buckets[0].config, "cover": "1x512"})
    assert other.config != tuned.buckets[0].config
    assert dataclasses.replace(known, buckets=[other, tuned.buckets[1]]).stale


def test_shipped_entries_are_fresh_and_complete() -> None:
    """Measured on the H100 and predicted for gfx950: three ops at five hidden sizes, of today's templates."""
    entries = load_entries(tuned_configs_dir())
    assert not [str(e.problem) for e in entries if e.stale]
    for target, evidence in (("sm90", "measured"), ("gfx950", "predicted")):
        found = {(e.op, e.shape.get("hidden_size")) for e in entries if (e.target, e.evidence) == (target, evidence)}
        ops = ("dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant")
        assert found >= {(op, size) for op in ops for size in (7168, 5120, 2048, 1536, 512)}
    for e in entries:
        assert e.trials >= 40
        assert [bucket.tokens for bucket in e.buckets if not bucket.raced] == [1 << k for k in range(15)]
        assert e.buckets[-1].max_tokens is None


def test_shipped_measured_winners_are_never_slower_than_the_default() -> None:
    for e in load_entries(tuned_configs_dir()):
        for bucket in e.buckets:
            time = bucket.fields["median_us" if e.evidence == "measured" else "predicted_us"]
            # Between tuned counts a winner is kept where the default is as fast but for noise.
            noise = bucket.fields["margin"] if bucket.raced else 0.0001
            assert time <= bucket.fields["default_us"] * (1 + noise)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def test_files_hold_no_nan() -> None:
    for path in tuned_configs_dir().rglob("*.json"):
        json.loads(path.read_text(), parse_constant=_no_constant)
