"""What people see of a run: its results, tables, a summary of a model."""

from bitsplit.report.model_summary import Summary, summary
from bitsplit.report.results import LayerResult, QuantizationReport, attach_report, report_of, versions

__all__ = [
    "LayerResult",
    "QuantizationReport",
    "Summary",
    "attach_report",
    "report_of",
    "summary",
    "versions",
]
