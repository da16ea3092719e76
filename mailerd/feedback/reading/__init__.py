"""Reading reports: what a mail that came back says, as values (pure).

    report = read_report(content)

`mime` takes the mail apart, bounded; `dsn`, `complaints` and `aggregates` know what was written for machines, `prose`
reads what was not, `automatic` tells people's automatic replies apart, `returned` finds our message in it.
"""

from mailerd.feedback.reading.reader import read_report
from mailerd.feedback.reading.values import Report, Reported, ReportKind, Returned

__all__ = ["Report", "ReportKind", "Reported", "Returned", "read_report"]
