"""What was done and whether it helped, as one page that needs nothing else."""

from codemill.report.build import build_report
from codemill.report.data import ReportInputs, StageRecord

__all__ = ["ReportInputs", "StageRecord", "build_report"]
