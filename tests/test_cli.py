"""The command mera as a whole: versions, tables, errors and their exit codes, JSON, signals, pipes, completion."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli_tools import Mera, mera  # noqa: F401

from mera_torch import cli, errors, exits, platform
from mera_torch.cli.app import complete_platforms, complete_targets

COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
RUN = [sys.executable, "-m", "mera_torch"]


def test_the_commands() -> None:
    assert {
        "demo", "convert", "explain", "quantize", "compile", "run", "verify", "compare", "profile", "platforms", "zoo",
        "cache", "report", "dump", "bisect",
    } <= set(COMMANDS)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(command: str, mera: Mera) -> None:  # noqa: F811
    found = mera(command, "--help")
    assert found.code == 0 and "--json" in found.out


def test_version_names_every_part(mera: Mera) -> None:  # noqa: F811
    shown = dict(line.split(None, 1) for line in mera("--version").out.replace("C core", "C-core").splitlines())
    assert {"mera_torch", "C-core", "python", "torch", "torchao", "numpy", "cffi"} <= set(shown)
    assert re.match(r"\d+\.\d+\.\d+", shown["C-core"]) and "kernels" in shown["C-core"]
    assert "not installed" not in shown["mera_torch"]
    for arguments in (["--version", "--json"], ["--json", "--version"]):
        assert mera(*arguments).json["torch"] == shown["torch"]


def test_platforms_are_all_listed(mera: Mera) -> None:  # noqa: F811
    shown = mera("platforms").out
    known = [row.name for row in platform.platforms()]
    for name in (*known, *platform.aliases()):
        assert name in shown
    assert "assumptions of this project" in shown
    found = mera("platforms", "--json").json
    assert [row["name"] for row in found["platforms"]] == known and found["aliases"] == platform.aliases()
    assert mera("--json", "platforms").json == found


def test_zoo_lists_without_fetching(mera: Mera, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # noqa: F811
    monkeypatch.setenv("MERA_TORCH_CACHE", str(tmp_path))
    assert "mobilenet_v2" in mera("zoo").out
    found = mera("zoo", "--json").json
    assert found["cache"] == str(tmp_path) and not any(row["fetched"] for row in found["artifacts"])
    assert not list(tmp_path.iterdir())
    refused = mera("zoo", "no_such_thing")
    assert refused.code == 17 and "the zoo has no 'no_such_thing'" in refused.err


# ---- errors ----


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["demo", "--model", "resnet51"], 7, "no demo model 'resnet51'"),
        (["demo", "--platform", "SAKURA-1"], 7, "did you mean 'SAKURA_1'"),
        (["explain", "no.pt2"], 3, "'no.pt2' does not exist"),
        (["compile", __file__, "--output", "out"], 6, "is no TFLite, ONNX"),
        (["run", "nowhere", "digit.npy"], 3, "'nowhere' is no deployment"),
        (["report", "nowhere"], 3, "'nowhere' is no deployment"),
        (["profile", "nowhere"], 3, "'nowhere' does not exist"),
        (["compare", "nowhere"], 3, "'nowhere' does not exist"),
        (["bisect", "nowhere"], None, "'nowhere' cannot be read"),
        (["dump", "nowhere", "--stage", "scedule"], 7, "did you mean 'schedule'"),
        (["verify", "nowhere"], 3, "'nowhere' is no deployment"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    code: int | None,
    sentence: str,
    mera: Mera,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    found = mera(*arguments)
    assert found.code > 2 if code is None else found.code == code
    assert found.err.startswith("error: ") and sentence in found.err and found.out == ""
    assert "Traceback" not in found.err and found.err.count("\n") == 1
    told = mera(*arguments, "--json")
    assert told.code == found.code and told.out == ""
    error = json.loads(told.err)["error"]
    assert sentence in error["message"] and error["exit_code"] == found.code
    assert error["type"] in (*(cls.__name__ for cls in exits.FAMILIES), "ZooError")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--debug", "run", "nowhere"], ["run", "nowhere", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], mera: Mera) -> None:  # noqa: F811
    found = mera(*arguments)
    assert found.code == 3 and "Traceback" in found.err and "read_manifest" in found.err
    assert found.err.splitlines()[-1].startswith("error: 'nowhere' is no deployment")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fly"], "No such command 'fly' (see mera --help)"),
        (["explian", "x"], "Did you mean 'explain'?"),
        (["platforms", "--jsn"], "did you mean --json?"),
        (["compile"], "Missing argument 'model' (see mera compile --help)"),
        (["run", "x", "--repeat", "0"], "'--repeat'"),
    ],
)
def test_usage_errors_have_exit_code_2(arguments: list[str], sentence: str, mera: Mera) -> None:  # noqa: F811
    found = mera(*arguments)
    assert found.code == exits.USAGE and found.out == "" and sentence in found.err and found.err.count("\n") == 1
    told = mera(*arguments, "--json")
    assert told.code == exits.USAGE and json.loads(told.err)["error"]["exit_code"] == exits.USAGE


def test_no_command_shows_the_help(mera: Mera) -> None:  # noqa: F811
    found = mera()
    assert found.code == exits.USAGE and "platforms" in found.out


def test_every_family_has_a_code_of_its_own_and_the_help_tells_it(mera: Mera) -> None:  # noqa: F811
    families = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.MeraError)]
    without = {family for family in families if family not in exits.FAMILIES}
    assert without == {errors.ShapeNeededError} and issubclass(errors.ShapeNeededError, errors.InvalidModelError)
    assert len(set(exits.FAMILIES.values())) == len(exits.FAMILIES)
    assert set(exits.FAMILIES.values()) <= set(exits.MEANINGS)
    help_text = " ".join(mera("--help").out.split())
    for code, meaning in exits.MEANINGS.items():
        assert f"{code} {meaning}" in help_text


@pytest.mark.parametrize("family", [*exits.FAMILIES, KeyError, OSError, RecursionError])
def test_exit_codes_of_errors(
    family: type[Exception],
    mera: Mera,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise family("what went wrong")

    monkeypatch.setattr("mera_torch.platform.aliases", fail)
    found = mera("platforms")
    assert found.code == exits.exit_code(family("x")) and "what went wrong" in found.err
    assert found.code == exits.FAMILIES.get(family, 11 if family is OSError else exits.INTERNAL)
    assert ("internal error" in found.err) == (family in (KeyError, RecursionError))
    assert json.loads(mera("platforms", "--json").err)["error"]["exit_code"] == found.code


# ---- signals and pipes ----


def test_ctrl_c_is_clean() -> None:
    """A process that has begun to work is interrupted: it says so in one word, and has the shells' exit code."""
    code = (
        "import sys; sys.argv = ['mera', 'platforms']; import mera_torch.platform as p, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs are born without\n"
        "def wait(): print('ready', flush=True); time.sleep(60)\n"
        "p.platforms = wait\nfrom mera_torch.__main__ import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "ready\n"
        time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == exits.INTERRUPTED
        assert run.stderr.read() == "interrupted\n"


@pytest.mark.parametrize("arguments", [["platforms"], ["platforms", "--json"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*RUN, *arguments], stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == exits.BROKEN_PIPE and done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told() -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [*RUN, "platforms", "--json"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 11 and json.loads(done.stderr)["error"]["type"] == "StorageError"


# ---- completion ----


def completed(words: str, shell: str = "bash") -> list[str]:
    """What the shell is offered behind the words."""
    if shell == "bash":
        variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    else:
        variables = {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = {**os.environ, **variables, "_MERA_COMPLETE": f"complete_{shell}"}
    done = subprocess.run(RUN, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split("\n")


def test_completion_of_commands_and_values() -> None:
    assert {"explain"} <= set(completed("mera expl"))
    assert {"SAKURA_1", "SAKURA_II"} <= set(completed("mera compile m.pt2 --platform SAK"))
    assert {"Simulator"} <= set(completed("mera compile m.pt2 --target Sim"))
    assert {"mobilenet_v2"} <= set(completed("mera zoo mobile"))
    assert {"InterpreterHw"} <= set(completed("mera compare m.pt2 --rung Int"))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_in_other_shells(shell: str) -> None:
    assert any("explain" in line for line in completed("mera expl", shell))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown_and_installed(shell: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(
        [*RUN, "--show-completion", shell], env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0 and "_MERA_COMPLETE" in shown.stdout
    done = subprocess.run(
        [*RUN, "--install-completion", shell], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert any("_MERA_COMPLETE" in path.read_text() for path in tmp_path.rglob("*") if path.is_file())


def test_completers() -> None:
    assert complete_platforms("DNAF6") == ["DNAF632L0003", "DNAF632L0001", "DNAF632L0002"]
    assert "InterpreterHw" in complete_targets("")


# ---- without the whole installation ----


def runtime_only(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command where neither typer, rich nor torch can be imported."""
    code = (
        "import sys\nfor name in ('typer', 'rich', 'torch'): sys.modules[name] = None\n"
        "from mera_torch.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_without_typer_the_version_is_still_told() -> None:
    told = runtime_only("--version")
    assert told.returncode == 0 and told.stdout.startswith("mera_torch ")
    refused = runtime_only("demo")
    assert refused.returncode == exits.USAGE and 'pip install "mera_torch[full]"' in refused.stderr


def test_a_part_of_our_own_that_is_missing_is_no_missing_package() -> None:
    code = "import sys; sys.modules['mera_torch.cli.app'] = None; from mera_torch.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "pip install" not in done.stderr
