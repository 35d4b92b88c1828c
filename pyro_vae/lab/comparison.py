"""The result of a comparison of estimators, as a table, as figures and as files."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from pyro_vae.evaluation import Estimate
from pyro_vae.evaluation.results import Result, rounded, table
from pyro_vae.lab.rows import SIGNIFICANT, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Comparison(Result):
    """What :func:`~pyro_vae.lab.compare` found.

    Attributes:
        rows: one for each estimator and group.
        log_marginal_likelihood: that gaps are to, averaged over the data.
        exact: whether it was given, or else estimated by importance sampling.
        references: what gradients were compared with, by estimator.
        num_data: N.
    """

    rows: tuple[Row, ...]
    log_marginal_likelihood: Estimate
    exact: bool
    references: dict[str, str]
    num_data: int

    def row(self, estimator: str, group: str = "guide") -> Row:
        """The row of an estimator and a group.

        Raises:
            KeyError: there is none.
        """
        return {(row.estimator, row.group): row for row in self.rows}[estimator, group]

    def telling(self, group: str = "guide") -> list[str]:
        """What the rows of a group mean, in words: bias, gradients without noise, and what more particles do."""
        rows = [row for row in self.rows if row.group == group]
        biased = ", ".join(row.estimator for row in rows if row.biased)
        lines = [f"Biased, which more steps do not cure: {biased or 'none that these draws could tell'}."]
        noise = 1e-10 * max((row.variance for row in rows), default=0.0)
        if still := ", ".join(row.estimator for row in rows if row.variance < noise):
            lines.append(f"Without variance here, so that training comes to rest: {still}.")
        for family in dict.fromkeys(row.family for row in rows):
            members = sorted((row for row in rows if row.family == family), key=lambda row: row.num_particles)
            first, last = members[0], members[-1]
            if last.num_particles > first.num_particles:
                ratio, change = last.snr / first.snr, "changes little"
                if not 0.7 < ratio < 1.4:
                    change = "grows" if ratio > 1 else "dies: the bound tightens, and the encoder learns less"
                particles = f"from K = {first.num_particles} to {last.num_particles}"
                lines.append(
                    f"{family}, {particles}: the signal-to-noise ratio is {ratio:.2g} times as large. It {change}."
                )
        return lines

    def to_csv(self) -> str:
        """The rows, with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return text.getvalue()

    def snr_figure(self, group: str = "guide") -> Figure:
        """Signal-to-noise ratio against K."""
        from pyro_vae.lab.figures import snr_figure  # matplotlib takes as long to import as all else

        return snr_figure([row for row in self.rows if row.group == group])

    def cost_figure(self, group: str = "guide") -> Figure:
        """Variance of a gradient against the time of a step, with lines of equal variance at equal cost."""
        from pyro_vae.lab.figures import cost_figure

        return cost_figure([row for row in self.rows if row.group == group])

    def __str__(self) -> str:
        header = ["estimator", "group", "bound", "gap", "bias", "p", "variance", "SNR", "cosine", "ms", "MB", "draws"]
        rows = [
            [
                row.estimator,
                row.group,
                _with_error(row.bound, row.bound_error),
                _with_error(row.gap, row.gap_error),
                _with_error(row.bias, row.bias_error) + ("*" if row.biased else " "),
                f"{row.bias_p_value:.1g}",
                _with_error(row.variance, row.variance_error),
                _with_error(row.snr, row.snr_error),
                _with_error(row.cosine, row.cosine_error),
                f"{row.milliseconds:.2f}",
                f"{row.peak_bytes / 2**20:.3g}",
                f"{row.draws:,}",
            ]
            for row in self.rows
        ]
        value, error = rounded(self.log_marginal_likelihood.value, self.log_marginal_likelihood.standard_error)
        how = "exact" if self.exact else f"±{error}, by importance sampling"
        compared: dict[str, list[str]] = {}
        for name, reference in self.references.items():
            compared.setdefault(reference, []).append(name)
        return "\n".join(
            [
                table(header, rows),
                f"Bound and gap in nats per datum, N = {self.num_data}, log p(x) = {value} ({how}); gradients of the "
                "sum over the data; ± standard errors.",
                f"* The mean gradient differs from the reference's, p < {SIGNIFICANT}. References:",
                *(f"  {reference}, for {', '.join(names)}" for reference, names in compared.items()),
            ]
        )


def _with_error(value: float, error: float) -> str:
    if 0 < error < 1e-6 and abs(value) < 1e-3:
        return f"{value:.1e}±{error:.0e}"
    return "±".join(rounded(value, error))
