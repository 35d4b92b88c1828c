"""What evaluation returns: figures with their unit, sizes and standard error, as JSON and as a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """An average over data.

    Attributes:
        value: the average.
        standard_error: of the data as a draw from their population, with the noise of the particles in it; NaN for a
            single datum.
        unit: of both.
        num_data: N.
        num_particles: K, draws of the latents per datum.

    Example:
        >>> print(Estimate(-89.1234, 0.213, "nats", 1000, 5000))
        -89.12 ± 0.21 nats (N = 1,000, K = 5,000)
    """

    value: float
    standard_error: float
    unit: str
    num_data: int
    num_particles: int

    @classmethod
    def of(cls, values: Tensor, num_particles: int, unit: str = "nats") -> Estimate:
        """The average of one value for each datum, (N,)."""
        n = len(values)
        error = values.std().item() / math.sqrt(n) if n > 1 else math.nan
        return cls(values.mean().item(), error, unit, n, num_particles)

    def __str__(self) -> str:
        value, error = rounded(self.value, self.standard_error)
        return f"{value} ± {error} {self.unit} (N = {self.num_data:,}, K = {self.num_particles:,})"


class Result:
    """Base of the results, which are frozen dataclasses of estimates, tensors and settings."""

    def estimates(self) -> dict[str, Estimate]:
        """Every estimate by name, those of a mapping as ``"field, key"``."""
        return dict(_estimates(self))

    def to_json(self) -> str:
        """All fields; tensors as nested lists, NaN as null, infinities as "inf" and "-inf"."""
        return json.dumps(plain(self) | {name: plain(value) for name, value in self.estimates().items()})

    def __str__(self) -> str:
        """A table with a line per estimate."""
        rows = []
        for name, e in self.estimates().items():
            value, error = rounded(e.value, e.standard_error)
            rows.append([name.replace("_", " "), value, error, e.unit, f"{e.num_data:,}", f"{e.num_particles:,}"])
        return table(["", "value", "± s.e.", "unit", "data", "particles"], rows)


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value


def rounded(value: float, error: float) -> tuple[str, str]:
    """A value and its standard error, to two digits of the error."""
    if not (math.isfinite(value) and math.isfinite(error)) or error == 0:
        return f"{value:.6g}", f"{error:.2g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return (f"{value:.{digits}f}", f"{error:.{digits}f}") if digits < 8 else (f"{value:.4g}", f"{error:.1e}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def _estimates(result: Any) -> Iterator[tuple[str, Estimate]]:
    for field in fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Estimate):
            yield field.name, value
        elif isinstance(value, dict):
            yield from ((f"{field.name}, {key}", part) for key, part in value.items() if isinstance(part, Estimate))
