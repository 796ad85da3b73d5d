"""Platforms: the table, aliases, TOML files, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mera_torch import platform as platforms
from mera_torch.errors import ConfigError, MeraError
from mera_torch.platform import Platform

MINE = """
name = "mine"
units = 2
array = 32
clock_mhz = 1000
sram_bytes = 2097152
dram_gbps = 24.0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("row", platforms.platforms(), ids=lambda row: row.name)
def test_each_platform_of_the_table_is_valid_and_found(row: Platform) -> None:
    assert platforms.check(row) == row
    assert platforms.find(row.name) == row
    assert platforms.find(row) is row


# identifier, units, array, clock in MHz, published INT8 TOPS
PUBLISHED = [
    ("SAKURA_1", 6, 64, 800, 40),
    ("SAKURA_II", 6, 64, 800, 40),
    ("DNAA800L0001", 8, 64, 1200, 78),
    ("DNAA400L0001", 4, 64, 800, 26.2),
    ("DNAF200L0003", 2, 64, 300, 4.9),
    ("DNAF632L0003", 6, 32, 300, 3.6),
    ("DNAF100L0003", 1, 64, 300, 2.4),
    ("DNAF232S0002", 2, 32, 300, 1.2),
    ("DNAF132S0001", 1, 32, 300, 0.6),
]


@pytest.mark.parametrize("name, units, array, clock_mhz, tops", PUBLISHED)
def test_published_figures(name: str, units: int, array: int, clock_mhz: float, tops: float) -> None:
    found = platforms.find(name)
    assert (found.units, found.array, found.clock_mhz) == (units, array, clock_mhz)
    assert 2 * found.macs_per_cycle * found.clock_mhz * 1e6 == pytest.approx(tops * 1e12, rel=0.05)


def test_aliases_mean_the_same_machine() -> None:
    for alias, name in platforms.aliases().items():
        assert platforms.find(alias) == platforms.find(name)
    assert platforms.find("DNAA600L0002").name == "SAKURA_1"


def test_a_user_platform_is_read_from_toml(tmp_path: Path) -> None:
    found = platforms.find(write(tmp_path, MINE))
    assert found == Platform("mine", 2, 32, 1000.0, 2097152, 24.0)
    assert (found.sram_banks, found.dram_latency_cycles, found.bf16) == (64, 100, False)
    assert found.dram_bytes_per_cycle == 24.0
    assert platforms.find(str(tmp_path / "mine.toml")) == found


def test_toml_goes_there_and_back(tmp_path: Path) -> None:
    for row in platforms.platforms():
        assert platforms.load(write(tmp_path, platforms.to_toml(row))) == row


def test_an_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="SAKURA_1"):
        platforms.find("SAKURA1")
    with pytest.raises(ConfigError, match="DNAF232S0002"):
        platforms.find("nothing like it")
    assert issubclass(ConfigError, MeraError)


@pytest.mark.parametrize(
    "line, message",
    [
        ("unit = 2", "unknown key 'unit': did you mean 'units'"),
        ("bf16 = 1", "bf16 must be bool, got 1"),
        ("sram_banks = 48", "sram_banks must be a power of two"),
        ("sram_banks = -1", "sram_banks must be 0 to"),
        ("dram_latency_cycles = 1000000", "dram_latency_cycles must be 0 to 100000, got 1000000"),
        ("units = ", "is not TOML"),
    ],
)
def test_bad_extra_lines(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        platforms.find(write(tmp_path, MINE + line))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("name", '""', "name must"),
        ("name", '"' + "x" * 64 + '"', "name must"),
        ("name", "3", "name must be str, got 3"),
        ("units", "0", "units must be 1 to 16, got 0"),
        ("units", "17", "units must be 1 to 16, got 17"),
        ("units", "2.0", "units must be int, got 2.0"),
        ("array", "48", "array must be 16, 32, 64 or 128, got 48"),
        ("clock_mhz", "0", "clock_mhz must be 0.001 to 100000"),
        ("clock_mhz", "nan", "clock_mhz must be 0.001 to 100000"),
        ("clock_mhz", "inf", "clock_mhz must be 0.001 to 100000"),
        ("sram_bytes", "2097153", "sram_bytes must be a multiple of 1024"),
        ("sram_bytes", "1099511627776", "sram_bytes must be"),
        ("dram_gbps", '"fast"', "dram_gbps must be a number, got 'fast'"),
        ("dram_gbps", "-1", "dram_gbps must be above 0"),
    ],
)
def test_bad_values(tmp_path: Path, key: str, value: str, message: str) -> None:
    lines = [f"{key} = {value}" if line.startswith(key) else line for line in MINE.splitlines()]
    with pytest.raises(ConfigError, match=message):
        platforms.find(write(tmp_path, "\n".join(lines)))


def test_a_missing_key_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key 'array' is missing"):
        platforms.find(write(tmp_path, MINE.replace("array = 32\n", "")))
    with pytest.raises(ConfigError, match="none.toml"):
        platforms.find(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        platforms.find(tmp_path)


def test_a_platform_made_in_python_is_checked() -> None:
    good = platforms.find("SAKURA_1")
    with pytest.raises(ConfigError, match="units must be 1 to 16, got 99"):
        platforms.find(dataclasses.replace(good, units=99))
