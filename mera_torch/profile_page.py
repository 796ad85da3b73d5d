"""A profile as one page of HTML that needs nothing else."""

from __future__ import annotations

from .pages import render
from .profile import BOUND, Profile

KINDS = (*BOUND, "idle")
"""Kinds of cycle, in the order of the key; profile.css has a colour for each."""


def page(profile: Profile, title: str) -> str:
    """The whole page."""
    values = {"profile": profile, "total": profile.total, "roof": profile.roofline}
    return render("profile.html", {**values, "title": title, "names": BOUND, "kinds": KINDS})
