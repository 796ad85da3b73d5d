"""The command `mera`, and `python -m mera_torch`. The runtime install has no command line but `mera --version`."""

from __future__ import annotations

import sys


def main() -> None:
    """Starts the command line, or says what to install for it."""
    try:
        from .cli import main as command_line
    except ModuleNotFoundError as error:
        if sys.argv[1:] == ["--version"]:
            from .versions import table

            print(table())
            return
        sys.exit(f'the command mera needs {error.name}: pip install "mera_torch[full]"')
    command_line()


if __name__ == "__main__":
    main()
