"""What lets campaigns that have begun go on: their ledger is written, and its rows are handed over to the queue.

`writing` puts the audience into the ledger, range by range; `handing` moves rows into the queue, one transaction for
both; `turns` says how many of which campaign and when again; `runs` is the table by which the workers of all nodes
share this out. `loop` does it all in each worker. A campaign's row in that table is locked by whoever hands its rows
over, so whoever pauses or cancels it waits for that transaction, and nothing is handed over afterwards.
"""
