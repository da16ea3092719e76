"""Spool and queue: what is due, and when.

A message and its recipients are rows from the moment they are accepted until each recipient has its final verdict; then
the rows go and only events remain, so the tables are as large as the backlog and not as the history.

Who may work on a recipient is its `owner`, a worker's number, or nobody. A worker that accepts mail owns it at once and
tries it from memory without reading it back; what does not fit into memory is stored without an owner. Recipients
without an owner are claimed by queue when they are due: the `queues` table has one row for each queue that has such
recipients, with the time of the earliest and, when the queue must wait, until when and why. So a million recipients of
one blocked domain are one row that is not looked at.

A worker beats every few seconds. Whoever sees that a worker has stopped beating takes its name off its recipients,
which are then simply due. Which of them might have been sent already (the final dot was on its way, the reply was not
recorded) is in the worker's journal; only those are marked `in_doubt`.
"""
