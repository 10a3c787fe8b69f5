"""`xrun setup`: what other programs need to know of xrun."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .sharing import need_yes


@click.group(cls=options.Commands)
def setup() -> None:
    """Make other programs ready for xrun."""


@setup.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--remove", is_flag=True, help="Take it out again.")
@click.option(
    "--wheel",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Only write the plugin's wheel into this folder, for an API server elsewhere.",
)
def sky(yes: bool, remove: bool, folder: Path | None) -> None:
    """Install xrun's plugin into SkyPilot's API server. With it jobs keep deadlines, wait for spot
    machines, and do not go first to the zone that was just lost.

    Shows what changes in ~/.sky, and asks.
    """
    from ..files import write_bytes
    from ..launcher.sky import plugin
    from ..launcher.wheel import pack_plugin

    if folder is not None:
        name, wheel = pack_plugin()
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / name, wheel)
        click.echo(folder / name)
        return
    plugin.check_here()
    changes = plugin.removal() if remove else plugin.installation()
    if not changes:
        click.echo(f"SkyPilot {'does not have' if remove else 'has'} xrun's plugin.")
        if not remove:
            click.echo(f"If a launch says that it is missing: {plugin.RESTART}")
        return
    for change in changes:
        click.echo(change.text())
    if not yes:
        need_yes("Remove it?" if remove else "Install it?", "SkyPilot was not changed")
    for change in changes:
        change.make()
    what = "The plugin is removed." if remove else "The plugin is installed."
    click.echo(f"{what} Restart a running API server: {plugin.RESTART}")
    if not remove:
        click.echo(
            "The API server does not start without xrun: before you uninstall xrun, type `xrun"
            " setup sky --remove`."
        )


COMMANDS = (setup,)
