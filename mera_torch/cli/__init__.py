"""The command `mera`. Each module beside this one adds its commands to `app` when it is imported."""

from . import (
    compare,
    deployments,
    device,
    info,
    inspect,
    lint,
    mixed,
    models,
    profile,
    quality,
    quantize,
    storage,
    verify,
)  # fmt: skip
from .app import app, console, main

__all__ = [
    "app", "compare", "console", "deployments", "device", "info", "inspect", "lint", "main", "mixed", "models",
    "profile", "quality", "quantize", "storage", "verify",
]  # fmt: skip
