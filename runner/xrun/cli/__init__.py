"""The command line: parses and prints, no logic."""


def main() -> None:
    """The `xrun` command."""
    from .app import main

    main()
