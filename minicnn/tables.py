"""The table that `summary()` returns."""

from collections.abc import Iterable, Sequence

from minicnn.parameter import Parameter


def count(parameters: Iterable[Parameter]) -> int:
    """Return how many numbers the parameters hold."""
    return sum(parameter.value.size for parameter in parameters)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], parameters: Sequence[Parameter]
) -> str:
    """Return rows under a head in columns, the last one to the right, and the total below."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i == len(head) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, ["-" * width for width in widths], *rows)
    ]
    size = sum(parameter.value.nbytes for parameter in parameters)
    text = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    lines.append(f"total: {count(parameters):,} parameters, {text}")
    return "\n".join(lines)
