"""Products of inputs and weights that are written as an einsum: what each letter of the equation stands for."""

from __future__ import annotations

from typing import NamedTuple


class Roles(NamedTuple):
    """The axes of an einsum of an input and a weight."""

    inputs_first: bool
    """True if the weight has its inputs before its neurons."""
    of_input: int | None
    """The axis of the input along which the members of an ensemble lie; None where all get the same input."""
    of_output: int | None
    """The same of the output; None for one weight."""


def roles(equation: str, weight: int) -> Roles | None:
    """Return the roles in an einsum of two operands, of which the one at position ``weight`` is a weight.

    None unless it computes layers as torch does: the inputs along the last axis of the input, the neurons along the
    last axis of the output, and, of several members, their weights along the first axis of the weight.
    """
    left, arrow, out = equation.replace(" ", "").replace("...", "?").partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != 2:
        return None
    w, x = terms[weight], terms[1 - weight]
    neurons = [letter for letter in w if letter in out and letter not in x]
    inputs = [letter for letter in w if letter in x and letter not in out]
    members = [letter for letter in w if letter in out and letter not in (*neurons, *inputs)]
    members += neurons[: len(neurons) - 1]  # a member whose input is that of all
    if len(w) != len(set(w)) or len(inputs) != 1 or not neurons or len(w) != 2 + len(members) or len(members) > 1:
        return None
    if out[-1:] != neurons[-1] or x[-1:] != inputs[0] or w[: len(members)] != "".join(members):
        return None
    first = w.index(inputs[0]) < w.index(neurons[-1])
    if not members:
        return Roles(first, None, None)
    of_input = _axis(members[0], x) if members[0] in x else None
    return Roles(first, of_input, _axis(members[0], out))


def _axis(letter: str, term: str) -> int:
    """Return the axis of a letter, counted from the end unless any number of axes follows."""
    position = term.index(letter)
    return position if "?" in term[position:] else position - len(term)
