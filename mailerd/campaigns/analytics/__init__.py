"""Analytics: what became of campaigns, counted while it happens.

A follower turns each event into a transition of its row of the ledger (`progress`), and adds the sums of these to the
roll-ups (`rollups`) in the transaction that moves it on: ledger and roll-ups agree at every moment. Reports (`reports`)
read roll-ups and no events, so they take the same time however much was sent.
"""
