"""tunegen render: the source of one kernel."""

from __future__ import annotations

import click

from tunegen.cli._options import auto_target, chosen_problems, parse_settings, size_options
from tunegen.errors import UsageError


@click.command()
@click.argument("op")
@size_options
@click.option("--target", default="auto", show_default=True, help="See `tunegen targets`.")
@click.option(
    "--variant",
    "--rounding",
    help="The op's rounding and what else is resolved when rendering, such as output, or act,neox,fp8 of"
    " mla_rope_cache. Default: the usual one.",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A config value; may be repeated.")
@click.option("--twin", is_flag=True, help="The traffic twin: the same loads and stores, no arithmetic.")
@click.option("--resources", is_flag=True, help="Compile it too, and report what it uses.")
def render(
    op: str,
    target: str,
    variant: str | None,
    settings: tuple[str, ...],
    twin: bool,
    resources: bool,
    **sizes: tuple[int, ...],
) -> None:
    """Print the rendered kernel of OP; config values that are not set are the default's."""
    from tunegen.codegen.render import render as render_kernel
    from tunegen.ops import Problem, get_family

    family = get_family(op)
    first, *others = chosen_problems(None, 1, [op], **sizes)
    if any(other.shape != first.shape for other in others):
        raise UsageError("tunegen render prints one kernel: give each size once.")
    problem = Problem(op, first.shape, variant or first.rounding)
    family.check_shape(problem)
    problem = family.canonical_problem(problem)
    gpu = auto_target(target)
    rendered = render_kernel(problem, gpu, family.resolve(problem, gpu, parse_settings(settings)), twin=twin)
    click.echo(rendered.source, nl=False)
    if resources:
        from dataclasses import asdict

        from tunegen.codegen.compile import compile_kernel

        compiled = compile_kernel(rendered)
        click.echo(f"\n# compiled for {gpu.name} in {compiled.seconds:.2f} s")
        for name, value in asdict(compiled.resources).items():
            click.echo(f"#   {name:22} {value:.4g}" if isinstance(value, float) else f"#   {name:22} {value}")
