"""HTML pages that need nothing else: one file each, style and script inside, no address of another host.

A page is a Jinja template of this folder; what it shows is escaped wherever it stands, so that names which a model
brings are text and nothing more. All pages share `base.html` and the style `base.css`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

_SCRIPT_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page that `template`, a file of this folder, makes of `values`."""
    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["script_json"] = script_json
    environment.globals["source"] = lambda name: Markup(source(name))
    return environment.get_template(template).render(values)


def source(name: str) -> str:
    """The text of a file of this folder."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def script_json(value: Any) -> Markup:
    """`value` as JSON that can stand in a <script> element: no character of it ends the element or opens a comment."""
    return Markup(json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_SCRIPT_ESCAPES))
