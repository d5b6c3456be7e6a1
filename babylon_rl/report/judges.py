"""The output of `rejudge` and `audit-judge`: tables of their reports, nothing computed."""

from rich.table import Table

from babylon_rl.judging.audit.audit import LEAST_TRUTH_AGREEMENT, LIMITS, Figures
from babylon_rl.pipeline.rejudge import RejudgeReport
from babylon_rl.report import formatting
from babylon_rl.types import Judgment


def rejudge_table(report: RejudgeReport, *, last: int, made_current: bool) -> tuple[Table, list[str]]:
    """The newest `last` windows as a table, and the lines under it."""
    table = Table("window", "old judge", "new judge", "rank agreement", "trained on")
    table.columns[3].justify = "right"
    for w in report.windows[-last:] if last else ():
        trained = ", ".join(f"{name}: {which}" for name, which in w.trained.items())
        table.add_row(
            w.window_id,
            _name_judge(w.old),
            w.failed or _name_judge(w.new),
            "-" if w.tau is None else f"{w.tau:+.2f}",
            trained,
        )
    used = sum(bool(w.trained) for w in report.windows)
    tau = "unknown" if report.mean_tau is None else f"{report.mean_tau:+.3f}"
    lines = [
        f"{formatting.count(len(report.windows), 'group')}: {report.calls} judged now, {report.cached} judged before, "
        f"{sum(w.failed is not None for w in report.windows)} failed, cost ${report.cost_usd:.4f}",
        f"Rank agreement old/new (Kendall tau, mean over groups): {tau}",
        f"{used} of these windows are in checkpoints, {sum('old' in w.trained.values() for w in report.windows)} with the "
        "old judgment; no checkpoint changes",
        "The new judgments are now the current ones of their windows."
        if made_current
        else "The current judgments stay; --make-current replaces them with the new ones.",
    ]
    return table, lines


def audit_table(figures: Figures) -> Table:
    """Each figure beside its limit."""
    table = Table("figure", "found", "limit")
    table.columns[1].justify = table.columns[2].justify = "right"
    table.add_row("truth agreement (tau)", f"{figures.truth_agreement:.3f}", f">= {LEAST_TRUTH_AGREEMENT:g}")
    for name, limit in LIMITS.items():
        table.add_row(name.replace("_", " "), f"{getattr(figures, name):.3f}", f"<= {limit:g}")
    for name, value in figures.by_control.items():
        table.add_row(f"  fooled by {name}", f"{value:.0%}", "")
    table.add_row("  injection gain", f"{figures.injection_gain:+.3f}", "")
    table.add_row("groups judged, failed", f"{figures.judged}, {figures.failed}", "")
    return table


def _name_judge(judgment: Judgment | None) -> str:
    return "none" if judgment is None else f"{judgment.judge_model} {judgment.judge_version}"
