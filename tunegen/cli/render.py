"""tunegen render: the source of one kernel."""

from __future__ import annotations

import click

from tunegen.cli._options import auto_target, parse_settings


@click.command()
@click.argument("op")
@click.option("--hidden-size", type=int, required=True, help="Width of a row.")
@click.option("--target", default="auto", show_default=True, help="See `tunegen targets`.")
@click.option("--rounding", default="none", show_default=True, help="What the norm is rounded to, and when.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A config value; may be repeated.")
@click.option("--twin", is_flag=True, help="The traffic twin: the same loads and stores, no arithmetic.")
@click.option("--resources", is_flag=True, help="Compile it too, and report what it uses.")
def render(
    op: str, hidden_size: int, target: str, rounding: str, settings: tuple[str, ...], twin: bool, resources: bool
) -> None:
    """Print the rendered kernel of OP; config values that are not set are the default's."""
    from tunegen.codegen.render import render as render_kernel
    from tunegen.ops import Problem, get_family

    family = get_family(op)
    problem = Problem.of(op, {"hidden_size": hidden_size}, rounding)
    family.check_shape(problem)
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
