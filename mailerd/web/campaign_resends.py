"""Whom a campaign goes to again, as clients say it and as it is stored."""

from collections.abc import Sequence
from typing import cast

from mailerd.campaigns.ledger import Mark, Status
from mailerd.campaigns.values import Resend
from mailerd.web.campaign_bodies import Again

# Whoever has clicked has read it, even where his reader shows no pictures.
UNMARKED: dict[Again, Mark] = {"not_opened": Mark.OPENED | Mark.CLICKED, "not_clicked": Mark.CLICKED}


def resend_of(campaign_id: int, words: Sequence[Again]) -> Resend:
    """Both of `not_opened` and `not_clicked` are the latter: who has not opened has not clicked."""
    statuses = sorted({int(Status[word.upper()]) for word in words if word not in UNMARKED})
    marks = min((int(UNMARKED[word]) for word in words if word in UNMARKED), default=0)
    return Resend(campaign=campaign_id, statuses=statuses, soft_only=True, unmarked=marks)


def words_of(resend: Resend) -> list[Again]:
    """The same as clients read it."""
    words = [cast("Again", Status(number).word) for number in resend.statuses]
    return [*words, *(word for word, marks in UNMARKED.items() if marks == resend.unmarked)]
