"""tunegen show: coverage and differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunegen.cli import cli
from tunegen.codegen.render import template_hash
from tunegen.configs import TunedEntry, load_entries, save_entries
from tunegen.errors import TunegenError
from tunegen.models import MODELS, problems_of
from tunegen.ops import get_family
from tunegen.paths import tuned_configs_dir

OP = "rmsnorm_mxfp4_quant"


def show(*arguments: str) -> str:
    """Output with each run of blanks as one."""
    done = CliRunner().invoke(cli, ["show", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return " ".join(done.output.split())


def rows(text: str) -> dict[str, list[str]]:
    """Cells of a table without blanks, by the first of them."""
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    return {line[0]: line[1:] for line in lines}


def fresh(entries: list[TunedEntry]) -> list[TunedEntry]:
    """The entries as if today's templates had made them."""
    return [replace(entry, template_hash=template_hash(get_family(entry.op).template)) for entry in entries]


def test_coverage_of_what_ships(tmp_path: Path) -> None:
    entries = fresh(load_entries(tuned_configs_dir(), ["sm90", "gfx950"]))
    save_entries(tmp_path, entries)
    done = CliRunner().invoke(cli, ["show", "--coverage", "--configs", str(tmp_path)], catch_exceptions=False)
    table = rows(done.output)
    for model in ("deepseek-r1", "deepseek-v2-lite"):
        asked = problems_of(MODELS[model])
        has = {target: sum(e.target == target and e.problem in asked for e in entries) for target in ("sm90", "gfx950")}
        assert has["sm90"] >= 10
        of = f"of {len(asked)}"
        assert table[model] == ["1", f"{has['gfx950']} predicted {of}", f"0 {of}", f"{has['sm90']} measured {of}"]
    assert "`tunegen tune --model NAME --target gfx942`: everything for gfx942" in " ".join(done.output.split())


def test_coverage_names_what_is_missing(tmp_path: Path) -> None:
    entries = [entry for entry in fresh(load_entries(tuned_configs_dir(), ["sm90"])) if entry.op == OP]
    kept = [entry for entry in entries if entry.shape["hidden_size"] != 512]
    (widest,) = (entry for entry in kept if entry.shape["hidden_size"] == 7168)
    buckets = [bucket for bucket in widest.buckets if bucket.tokens not in (8, 32)]
    save_entries(tmp_path, [*(entry for entry in kept if entry is not widest), replace(widest, buckets=buckets)])
    asked = ("--coverage", "--configs", str(tmp_path), "--op", OP, "--model", "deepseek-r1", "--target", "sm90")
    shown = show(*asked, "--tp", "8", "--tp", "3")
    assert "│ deepseek-r1 │ 8 │ 1 measured of 3 │" in shown
    assert "│ deepseek-r1 │ 3 │ 128 heads do not split │" in shown
    assert "missing, for `tunegen tune --model deepseek-r1 --tp 8 --target sm90`:" in shown
    assert f"{OP} (hidden_size 7168): 8, 32 tokens {OP} (hidden_size 512): all token counts" in shown
    assert "│ 2 measured of 3 │" in show(*asked, "--tokens", "1,16")


def test_difference_of_two_folders(tmp_path: Path) -> None:
    entries = [entry for entry in load_entries(tuned_configs_dir(), ["sm90"]) if entry.op == OP]
    narrow, *_, wide = entries
    first = wide.buckets[0]
    warps, time = first.config["num_warps"], first.fields["median_us"]
    others = 4 if warps == 8 else 8
    changed = replace(
        first, config={**first.config, "num_warps": others}, fields={**first.fields, "median_us": 2 * time}
    )
    save_entries(tmp_path, [replace(wide, buckets=[changed, *wide.buckets[1:]]), *entries[2:-1]])
    shown = show("--op", OP, "--target", "sm90", "--configs", str(tuned_configs_dir()), "--diff", str(tmp_path))
    assert f"{narrow.problem} on sm90: only in {tuned_configs_dir()}" in shown
    assert f"{wide.problem} on sm90: both measured" in shown
    assert f"│ 1 │ {time:.2f} │ {2 * time:.2f} │ 2.00 │ num_warps={warps}->{others} │" in shown
    assert "│ 2 │" not in shown
    assert f"{len(entries) - 3} problems have the same configs" in shown


def test_difference_of_two_targets() -> None:
    shown = show("--op", OP, "--target", "sm90", "--diff", "gfx950")
    assert f"{OP} (hidden_size 7168): measured, then predicted" in shown
    assert "max_registers" not in shown
    assert "waves_per_eu" not in shown
    assert "│ - │ splits=" in shown
    assert f"{OP} (hidden_size 512): only in" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--diff", "gfx95", "--target", "sm90"), "Did you mean 'gfx950'"),
        (("--diff", "gfx950"), "name that one, once, with --target"),
        (("--diff", "sm90", "--target", "sm90"), "name that one, once, with --target"),
        (("--diff", "sm90", "--coverage"), "one of --coverage, --diff and --failures"),
        (("--model", "deepseek-r1"), "say what --coverage looks at"),
        (("--coverage", "--model", "deepseek_r1"), "Did you mean 'deepseek-r1'"),
        (("--coverage", "--tokens", "0"), "Token counts are positive integers"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str) -> None:
    done = CliRunner().invoke(cli, ["show", *arguments])
    assert isinstance(done.exception, TunegenError), done.output
    assert message in str(done.exception)
