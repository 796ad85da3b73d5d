"""The command `mera` of the runtime install: --version, run and verify, with the standard library's argparse."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import exits
from .errors import MeraError


def main(arguments: Sequence[str], missing: str) -> int:
    """Runs a command, or says what to install for the others; missing: the package that the whole command line lacks.
    Gives the exit code: see mera_torch.exits."""
    known = ("run", "verify")
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command is not None and command not in known:
        print(
            f'error: mera {command} needs {missing}: pip install "mera_torch[full]" (this runtime install has '
            f"{', '.join(known)} and --version)",
            file=sys.stderr,
        )
        return exits.USAGE
    options = _parser(missing).parse_args(arguments)
    if options.version:
        from .versions import table, versions

        print(json.dumps(versions(), indent=2) if options.json else table())
        return exits.OK
    if command is None:
        _parser(missing).print_help()
        return exits.USAGE
    try:
        code: int = options.function(options)
        sys.stdout.flush()
        return code
    except (MeraError, OSError) as error:
        if options.debug:
            traceback.print_exc()
        code = exits.exit_code(error)
        if options.json:
            told = {"type": type(error).__name__, "message": str(error), "exit_code": code}
            print(json.dumps({"error": told}), file=sys.stderr)
        else:
            print(f"error: {error}", file=sys.stderr)
        return code


def _parser(missing: str) -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document", default=argparse.SUPPRESS)
    common.add_argument(
        "--debug", action="store_true", help="show the traceback of an error", default=argparse.SUPPRESS
    )
    parser = argparse.ArgumentParser(
        "mera",
        description="The runtime install of mera_torch.",
        epilog=f'All other commands need {missing}: pip install "mera_torch[full]"',
        parents=[common],
    )
    parser.add_argument("--version", action="store_true", help="the versions of all parts")
    parser.set_defaults(json=False, debug=False)
    commands = parser.add_subparsers(title="commands")
    run = commands.add_parser("run", parents=[common], help="run a deployment on arrays or random inputs")
    run.add_argument("deployment", type=Path)
    run.add_argument("inputs", type=Path, nargs="*", help="a .npy file for each input, in order, or one .npz")
    run.add_argument("--output", type=Path, help="write the outputs there, as .npz")
    run.add_argument("--target", help="InterpreterHw, Simulator or IP")
    run.add_argument("--device", action="append", help="run on this device (target IP)")
    run.add_argument("--repeat", type=_positive, default=1, help="run so often, and tell the latencies")
    run.add_argument("--seed", type=int, default=0, help="of the random inputs")
    run.set_defaults(function=_run)
    verify = commands.add_parser("verify", parents=[common], help="check a deployment and run its golden pair again")
    verify.add_argument("deployment", type=Path)
    verify.add_argument("--target", action="append", help="default: all that were built")
    verify.set_defaults(function=_verify)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _run(options: argparse.Namespace) -> int:
    from .execute import describe, executable, latency, save, timed
    from .samples import random_inputs, read_inputs

    found = executable(options.deployment, options.target, options.device)
    specs = found.specs
    arrays = read_inputs(options.inputs, specs) if options.inputs else random_inputs(specs, options.seed)
    results: list[Any] = []

    def once() -> None:
        results[:] = found.run(arrays)

    seconds = timed(once, options.repeat)
    outputs = dict(zip(found.names, results, strict=True))
    if options.output is not None:
        save(options.output, outputs)
    rows = [describe(name, array) for name, array in outputs.items()]
    if options.json:
        print(json.dumps({"target": found.target, "outputs": rows, "latency_ms": latency(seconds)}, indent=2))
        return exits.OK
    for row in rows:
        print(f"{row['name']}: {row['dtype']}{row['shape']}, largest at {row.get('largest_at', '-')}")
    if options.repeat > 1:
        ms = latency(seconds)
        print(f"{ms['runs']} runs, ms: mean {ms['mean']:.3f}, median {ms['median']:.3f}, max {ms['max']:.3f}")
    return exits.OK


def _verify(options: argparse.Namespace) -> int:
    from .verify import verify

    found = verify(options.deployment, options.target)
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return exits.OK if found.equal else exits.DIFFERENT
