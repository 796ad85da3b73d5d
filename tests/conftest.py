"""What all tests share: the markers slow and network, and the zoo's artifacts, skipped visibly where not to be had."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

# Threads that wait do not spin: on a busy machine that takes the time of those that work. Before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Tests neither read nor fill the user's compile cache; the processes they start share theirs.
_cache = tempfile.TemporaryDirectory(prefix="mera-cache-")
os.environ["MERA_CACHE_DIR"] = _cache.name

import pytest  # noqa: E402

MARKERS = {
    "slow": "takes more than a few seconds; run with --slow, or alone with -m slow",
    "network": "needs a package registry (or the zoo's cache); run with --network, or alone with -m network",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for name, meaning in MARKERS.items():
        parser.addoption(f"--{name}", action="store_true", help=f"run the tests marked {name}: {meaning}")


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for name, meaning in MARKERS.items():
            asked = config.getoption(f"--{name}") or name in config.getoption("-m")
            if item.get_closest_marker(name) and not asked:
                item.add_marker(pytest.mark.skip(reason=meaning))


@pytest.fixture(scope="session")
def zoo_artifact() -> Callable[[str], None]:
    """zoo_artifact(name) makes sure of an artifact of the zoo, or skips the test with the zoo's own message."""
    from mera_torch import zoo

    def need(name: str) -> None:
        try:
            zoo.archive(name)
        except zoo.ZooError as error:
            pytest.skip(str(error))

    return need
