"""``spliffctl completion``: prints the script that teaches a shell to complete spliffctl.

Takes the shell's name (or that of $SHELL), prints click's own script for it. Never touches a file.
"""

from __future__ import annotations

import os

import click

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    epilog="""\b
Examples:
  spliffctl completion bash > ~/.bash_completion
  spliffctl completion zsh > ~/.zfunc/_spliffctl
  spliffctl completion fish > ~/.config/fish/completions/spliffctl.fish""",
)
@click.argument("shell", type=click.Choice(SHELLS), required=False)
@click.pass_context
def command(ctx: click.Context, shell: str | None) -> int:
    """Print the shell's completion script; without SHELL, that of $SHELL."""
    from click.shell_completion import get_completion_class

    from spliffctl.output import Output

    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    if name not in SHELLS:
        raise click.UsageError(f"say which shell: {', '.join(SHELLS)}.")
    kind = get_completion_class(name)
    assert kind is not None, "click knows the three shells"
    Output().write(kind(ctx.find_root().command, {}, "spliffctl", "_SPLIFFCTL_COMPLETE").source() + "\n")
    return 0
