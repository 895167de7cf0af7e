"""Emission: what is written, that it is the same every time, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import HIDDEN_SIZES, files_of, make_entries, make_entry

from tunegen.errors import StaleEntryError, UsageError
from tunegen.oppack import emit_pack
from tunegen.ops.rmsnorm_mxfp4 import RMSNORM_MXFP4
from tunegen.runtime import manifest as runtime_manifest
from tunegen.runtime.manifest import ManifestError, read_manifest
from tunegen.runtime.reference.rmsnorm_mxfp4 import ROUNDINGS
from tunegen.targets import get_target

DYNAMIC, NORM, NORM_ADD = "dynamic_mxfp4_quant", "rmsnorm_mxfp4_quant", "rmsnorm_add_mxfp4_quant"
SM90 = get_target("sm90")


def test_layout(tmp_path: Path) -> None:
    pack = emit_pack(make_entries(), tmp_path / "pack")
    assert pack.package == tmp_path / "pack" / "tunegen_ops"
    assert {path.name for path in pack.path.iterdir()} == {"pyproject.toml", "README.md", "tunegen_ops"}
    files = files_of(pack.package)
    runtime = Path(runtime_manifest.__file__).parent
    copied = {name.removeprefix("runtime/"): content for name, content in files.items() if name.startswith("runtime/")}
    assert copied == {name: content for name, content in files_of(runtime).items() if name.endswith(".py")}
    assert {name for name in files if "/" not in name} == {
        "__init__.py",
        "fusion.py",
        "vllm_plugin.py",
        "manifest.json",
        "py.typed",
    }
    assert {name for name in files if name.startswith("compat/")} == {
        "compat/__init__.py",
        "compat/aiter.py",
        "compat/aiter_0_1_7.py",
    }
    kernels = {name for name in files if name.startswith("kernels/")}
    assert len(kernels) == pack.kernels
    # Two targets, two sizes, three configs, four layouts; one variant of the quantisation, three and five of the norms.
    assert pack.kernels == 2 * len(HIDDEN_SIZES) * 3 * 4 * (1 + 3 + 5)
    assert sum(name.startswith("kernels/gfx950/rmsnorm_mxfp4_quant/h512_norm_output_") for name in kernels) == 3
    assert sum("/rmsnorm_mxfp4_quant/h512_norm_output-shuffled_" in name for name in kernels) == 2 * 3
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_manifest_says_which_kernel_serves_what(tmp_path: Path) -> None:
    entries = make_entries()
    pack = emit_pack(entries, tmp_path / "pack")
    manifest = read_manifest(pack.package)
    assert (manifest.pack, manifest.version) == ("tunegen_ops", pack.version)
    assert len(manifest.entries) == len(entries)
    for entry in manifest.entries:
        roundings = {DYNAMIC: ["none"], NORM: ["none", "output", "norm_output"], NORM_ADD: ROUNDINGS}[entry.op]
        layouts = ("", ",columns", ",padded", ",shuffled")
        variants = {rounding + layout for rounding in roundings for layout in layouts}
        assert entry.edges == [2, 16]
        for bucket in entry.buckets:
            assert set(bucket.kernels) == variants
            for variant, path in bucket.kernels.items():
                source = (pack.package / path).read_text()
                assert f"def {entry.op}(" in source
                assert f"PROGRAMS_PER_UNIT = {bucket.config['programs_per_unit']}\n" in source
                assert f"h{entry.shape['hidden_size']}_{variant.replace(',', '-')}_" in path
    text = (pack.package / "manifest.json").read_text()
    assert json.loads(text)["entries"][0]["buckets"][1]["median_us"] == 2.0
    assert manifest.text() == text


def test_equal_sources_are_one_file(tmp_path: Path) -> None:
    entry = make_entry(DYNAMIC, 512, SM90)
    same = [replace(bucket, config=entry.buckets[0].config) for bucket in entry.buckets]
    pack = emit_pack([replace(entry, buckets=same)], tmp_path / "pack")
    assert pack.kernels == 4  # one a layout of the scales
    buckets = read_manifest(pack.package).entries[0].buckets
    assert len({bucket.kernels["none"] for bucket in buckets}) == 1


def test_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    first = emit_pack(make_entries(), tmp_path / "first", wheel=True)
    again = emit_pack(make_entries()[::-1], tmp_path / "second", wheel=True)
    assert files_of(first.path) == files_of(again.path)
    other = emit_pack(make_entries(("sm90",)), tmp_path / "third")
    assert other.version != first.version


def test_replaces_a_pack(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    emit_pack(make_entries(), out, name="old_pack", wheel=True)
    (out / ".mypy_cache").mkdir()
    pack = emit_pack(make_entries(("sm90",)), out)
    assert {path.name for path in out.iterdir()} == {"pyproject.toml", "README.md", "tunegen_ops"}
    assert not (pack.package / "kernels" / "gfx950").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_failure_leaves_the_old_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "pack"
    emit_pack(make_entries(("sm90",)), out)
    before = files_of(out)

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr("tunegen.oppack.emit.readme_text", fail)
    with pytest.raises(OSError, match="disk full"):
        emit_pack(make_entries(), out)
    assert files_of(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["pack"]


def test_foreign_folders_are_refused(tmp_path: Path) -> None:
    entries = make_entries(("sm90",))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    (tmp_path / "thesis" / "data").mkdir()
    (tmp_path / "thesis" / "data" / "manifest.json").write_text("[]")
    with pytest.raises(UsageError, match="not a pack that tunegen emitted"):
        emit_pack(entries, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "x"

    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        emit_pack(entries, tmp_path / "file")

    pack = emit_pack(entries, tmp_path / "pack")
    (pack.path / ".git").mkdir()
    with pytest.raises(UsageError, match=r"did not write: \.git\."):
        emit_pack(entries, pack.path)

    (tmp_path / "empty").mkdir()
    emit_pack(entries, tmp_path / "empty")


@pytest.mark.parametrize("name", ["my-ops", "1ops", "", "class", "_ops", "torch", "aten", "json", "öps", "../x"])
def test_names_that_no_pack_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        emit_pack(make_entries(("sm90",)), tmp_path / "pack", name=name)
    assert not list(tmp_path.iterdir())


def test_nothing_to_emit(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tunegen tune"):
        emit_pack([], tmp_path / "pack")


def test_two_entries_for_one_thing(tmp_path: Path) -> None:
    entry = make_entry(NORM, 512, SM90)
    with pytest.raises(UsageError, match="Two entries"):
        emit_pack([entry, replace(entry, evidence="predicted")], tmp_path / "pack")


def test_stale_entries_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    fresh, stale = make_entry(NORM, 512, SM90), replace(make_entry(NORM, 96, SM90), template_hash="0" * 12)
    with pytest.warns(UserWarning, match=r"left out.*rmsnorm_mxfp4_quant, hidden_size 96.*--allow-stale"):
        pack = emit_pack([fresh, stale], tmp_path / "pack")
    assert pack.entries == 1
    assert pack.skipped == (f"rmsnorm_mxfp4_quant, hidden_size 96, for {SM90.device}",)
    with pytest.raises(StaleEntryError, match="All 1 tuned entries"):
        emit_pack([stale], tmp_path / "other")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack = emit_pack([fresh, stale], tmp_path / "all", allow_stale=True)
    assert [(entry.shape["hidden_size"], entry.stale) for entry in read_manifest(pack.package).entries] == [
        (96, True),
        (512, False),
    ]
    assert "measured, stale" in (pack.path / "README.md").read_text()


def test_predicted_is_said_in_the_readme(tmp_path: Path) -> None:
    pack = emit_pack(make_entries(("sm90",), evidence="predicted"), tmp_path / "pack")
    readme = (pack.path / "README.md").read_text()
    assert readme.count("| predicted |") == len(RMSNORM_MXFP4.ops) * len(HIDDEN_SIZES)
    assert "on no GPU" in readme


def damage(package: Path, change: str) -> None:
    """Spoils a pack's manifest in one way."""
    path = package / "manifest.json"
    data = json.loads(path.read_text())
    if change == "missing":
        path.unlink()
        return
    if change == "half":
        path.write_text(path.read_text()[:1000])
        return
    if change == "no object":
        path.write_text("[1]")
        return
    entry = data["entries"][0]
    if change == "other format":
        data["format"] = 99
    elif change == "no op":
        entry["op"] = "softmax"
    elif change == "no evidence":
        entry["evidence"] = "guessed"
    elif change == "field missing":
        del entry["device"]["units"]
    elif change == "field too many":
        entry["colour"] = "red"
    elif change == "edges":
        entry["buckets"][0]["max_tokens"] = 99
    elif change == "no buckets":
        entry["buckets"] = []
    elif change == "no path":
        entry["buckets"][0]["kernels"]["none"] = 7
    elif change == "kernel missing":
        (package / entry["buckets"][0]["kernels"]["none"]).unlink()
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "cannot be read"),
        ("half", "cannot be read"),
        ("no object", "it has 'list'"),
        ("other format", "must have format 1; it has 99"),
        ("no op", "there is no op 'softmax'"),
        ("no evidence", "evidence is 'guessed'"),
        ("field missing", "units"),
        ("field too many", "colour"),
        ("edges", "do not ascend"),
        ("no buckets", "do not ascend"),
        ("no path", "not a path"),
        ("kernel missing", "1 kernel files that are not there"),
    ],
)
def test_damaged_manifest(tmp_path: Path, change: str, message: str) -> None:
    pack = emit_pack([make_entry(DYNAMIC, 512, SM90)], tmp_path / "pack")
    damage(pack.package, change)
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(pack.package)
    assert "tunegen emit" in str(error.value)


def test_wheel_installs_and_imports(tmp_path: Path) -> None:
    pack = emit_pack(make_entries(("sm90",)), tmp_path / "pack", name="wheel_ops", wheel=True)
    assert pack.wheel is not None
    assert pack.wheel.name == f"wheel_ops-{pack.version}-py3-none-any.whl"
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    # A venv sees the packages of the interpreter that it descends from, not those of a venv in between.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, pack.wheel], check=True, cwd=tmp_path)
    code = (
        "import torch, wheel_ops; print(wheel_ops.__file__);"
        "print([tuple(t.shape) for t in wheel_ops.dynamic_mxfp4_quant(torch.ones(3, 64))])"
    )
    ran = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert ran.stdout.splitlines() == [f"{site}/wheel_ops/__init__.py", "[(3, 32), (3, 2)]"]
