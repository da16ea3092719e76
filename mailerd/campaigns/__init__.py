"""Campaigns: one mail for many people, and what they do with it.

`contacts` are whom it may reach, in `lists` and `segments`; `templates` what it is rendered from; `campaigns` say which
to whom and when. A campaign that begins writes its audience into the ledger, range by range, and hands the rows over to
the queue as its pace allows: row and message change in one transaction. The mail is rendered right before it is sent.
`tracking` takes opens and clicks, `analytics` follows the events and keeps the ledger and the counts.

Of the relay this package knows `intake` (to submit), `queue.suppression`, and the order of `events`.
"""
