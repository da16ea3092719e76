"""Rows from arrays: how statements take columns as parameters, one array for each.

`FROM unnest(a, b, …)` keeps each column in a tuplestore of its own, which copies every value and goes to disk beyond
work_mem: for bodies that is dear. Set-returning functions that are selected hand on what is in the parameters.

A planner that sees how long an array is makes a plan of its own for each execution, which for a join takes longer than
to carry it out. Through a SELECT it does not see it, and the plan that is kept is used.
"""

from collections.abc import Container, Sequence


def unnested(types: Sequence[str], *, first: int = 1, alike: Container[int] = ()) -> str:
    """A SELECT list of the values of `$first` and the parameters behind it, arrays of these types.

    Parameters of the numbers in `alike` are no arrays, but the one value that all rows have; not of all columns.
    """
    return ", ".join(
        f"${number}::{type_}" if number in alike else f"unnest(${number}::{type_}[])"
        for number, type_ in enumerate(types, first)
    )


def rows(columns: str, types: Sequence[str], *, first: int = 1) -> str:
    """The same as a table to join with, in parentheses, whose columns are named so."""
    names = columns.split(", ")
    values = ", ".join(
        f"unnest((SELECT ${number}::{type_}[])) AS {name}"
        for number, (name, type_) in enumerate(zip(names, types, strict=True), first)
    )
    return f"(SELECT {values})"


def any_of(number: int, type_: str) -> str:
    """`ANY (…)` of the values of that parameter."""
    return f"ANY ((SELECT ${number}::{type_}[])::{type_}[])"
