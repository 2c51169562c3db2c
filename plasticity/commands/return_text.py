"""How the commands write a return."""

from __future__ import annotations


def return_text(value: float) -> str:
    """Return a return as text: one decimal, of what lies within 1, such as an accuracy, three."""
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:.1f}"
