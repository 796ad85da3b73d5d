"""The command `mera`. Each module beside this one adds its commands to `app` when it is imported."""

from . import compare, deployments, device, info, inspect, models, profile, storage, verify
from .app import app, console, main

__all__ = [
    "app", "compare", "console", "deployments", "device", "info", "inspect", "main", "models", "profile", "storage",
    "verify",
]  # fmt: skip
