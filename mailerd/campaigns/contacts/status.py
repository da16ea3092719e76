"""What a contact is, as SQL: derived from the suppressions that bind its address now, never stored.

Both expressions take the alias of a row with `address` and `tenant` of `contacts`. They stand for mail of one stream
and no topic: whoever left a topic is still active.
"""

MARKETING = "'marketing'"  # the stream of campaigns, as SQL

_WORST = """min(CASE {s}.reason WHEN 'complaint' THEN 1 WHEN 'bounce' THEN 2 WHEN 'soft_bounce' THEN 2
                             WHEN 'unsubscribe' THEN 3 ELSE 4 END)"""
_BINDS = """{s}.address IN ({c}.address, '@' || split_part({c}.address, '@', -1)) AND {s}.tenant IN
            ({c}.tenant, '') AND {s}.stream IN ('', {stream}) AND {s}.topic = ''
            AND ({s}.expires_at IS NULL OR {s}.expires_at > {now})"""


def status_sql(alias: str, stream_param: str = MARKETING, *, now: str = "now()", bounces: bool = True) -> str:
    """The status as text: active, unsubscribed, bounced, complained or suppressed, the worst that holds at `now`.

    `stream_param` and `now` are SQL, such as `$3`. Without `bounces` what it is beside that its address bounces.
    """
    row = f"{alias}_suppression"
    which = "" if bounces else f" AND {row}.reason NOT IN ('bounce', 'soft_bounce')"
    worst = _WORST.format(s=row)
    return (
        f"coalesce((SELECT CASE {worst} WHEN 1 THEN 'complained' WHEN 2 THEN 'bounced' WHEN 3 THEN 'unsubscribed'"
        f" WHEN 4 THEN 'suppressed' END FROM suppressions AS {row}"
        f" WHERE {binds_sql(alias, row, stream_param, now)}{which}), 'active')"
    )


def suppressed_sql(alias: str, stream_param: str = MARKETING, *, now: str = "now()") -> str:
    """Whether any suppression binds the contact: true exactly when `status_sql` is not 'active'."""
    row = f"{alias}_suppression"
    return f"EXISTS (SELECT FROM suppressions AS {row} WHERE {binds_sql(alias, row, stream_param, now)})"


def binds_sql(alias: str, row: str, stream: str, now: str) -> str:
    """The condition that the suppression `row` binds mail of the stream to the contact `alias` at `now`."""
    return _BINDS.format(s=row, c=alias, stream=stream, now=now)
