"""Sphinx: `sphinx-build -W docs docs/_build` makes the HTML pages (needs sphinx, myst-parser and furo)."""

project = "mera_torch"
copyright = "the mera_torch authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "mera_torch"
myst_heading_anchors = 3
# Links to files of the repository are right on the forge; they have no page here.
suppress_warnings = ["myst.xref_missing"]
