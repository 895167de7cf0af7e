"""tunegen tune: search the best config of every problem."""

from __future__ import annotations

from pathlib import Path

import click

from tunegen.cli._options import LOCAL_CONFIGS, auto_target, chosen_problems, parse_tokens, shape_options
from tunegen.errors import TargetError

MEASURED_TRIALS = 64
PREDICTED_TRIALS = 40


@click.command()
@shape_options
@click.option(
    "--target", default="auto", show_default=True, help="See `tunegen targets`; auto: the GPU here, else gfx950."
)
@click.option(
    "--evidence",
    type=click.Choice(["auto", "measured", "predicted"]),
    default="auto",
    show_default=True,
    help="Measure on the GPU here, or predict from the compiled kernel; auto: measure if the target's GPU is here.",
)
@click.option("--tokens", help="Token counts to tune at, such as 1,16,256. Default: powers of two from 1 to 16384.")
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    help=f"Distinct configs a problem. Default: {MEASURED_TRIALS} measured, {PREDICTED_TRIALS} predicted.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search.")
@click.option(
    "--storage",
    default="sqlite:///.tunegen/studies.sqlite3",
    show_default=True,
    help="optuna storage that every result goes to at once; a stopped run goes on from it.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=LOCAL_CONFIGS,
    show_default=True,
    help="Folder of tuned configs; what it holds of other shapes and targets stays.",
)
def tune(
    model: str | None,
    tp: int,
    ops: tuple[str, ...],
    target: str,
    evidence: str,
    tokens: str | None,
    trials: int | None,
    seed: int,
    storage: str,
    out: Path,
    **sizes: tuple[int, ...],
) -> None:
    """Search the best config for every op and shape, and write the winners to tuned_configs files."""
    from tunegen.cli._progress import progress
    from tunegen.configs import load_entries, save_entries
    from tunegen.files import require_writable
    from tunegen.paths import tuned_configs_dir
    from tunegen.search.evaluators import Evaluator, MeasuredEvaluator, PredictedEvaluator
    from tunegen.search.record import open_storage
    from tunegen.search.tune import DEFAULT_TOKENS, Plan
    from tunegen.search.tune import tune as run
    from tunegen.targets import present_device

    problems = chosen_problems(model, tp, ops, **sizes)
    gpu = auto_target(target)
    counts = parse_tokens(tokens) if tokens else list(DEFAULT_TOKENS)
    device = present_device() if target == "auto" or evidence != "predicted" else None
    here = device is not None and device.target == gpu
    if evidence == "measured" and not here:
        found = f"the GPU here is a {device.name} ({device.target.name})" if device else "there is no GPU here"
        raise TargetError(
            f"--evidence measured needs a {gpu.name} GPU; {found}."
            " Take --evidence predicted, or run this on such a GPU."
        )
    require_writable(out)
    evaluator: Evaluator
    if device is not None and here and evidence != "predicted":
        evaluator = MeasuredEvaluator(device, counts)
    else:
        evaluator = PredictedEvaluator(gpu, counts)
    default_trials = MEASURED_TRIALS if evaluator.evidence == "measured" else PREDICTED_TRIALS
    plan = Plan(tuple(counts), trials or default_trials, seed)
    folders = [folder for folder in (out, tuned_configs_dir()) if folder.is_dir()]
    # A stale winner is no result, but a good guess.
    known = [entry for folder in folders for entry in load_entries(folder, [gpu.name])]
    written: list[Path] = []
    with evaluator, progress(evaluator, plan, len(problems), out) as reporter:
        for entry in run(problems, evaluator, plan, open_storage(storage), known, reporter):
            written += save_entries(out, [entry])
    for path in dict.fromkeys(written):
        click.echo(f"wrote {path}")
