"""The command `mera`, and `python -m mera_torch`. The runtime install has --version, run and verify of it."""

from __future__ import annotations

import sys


def main() -> None:
    """Starts the command line, or what there is of it without typer and rich."""
    try:
        try:
            from .cli import main as command_line
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing.startswith("mera_torch"):
                raise
            from .minimal import main as minimal

            sys.exit(minimal(sys.argv[1:], missing))
        command_line()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
