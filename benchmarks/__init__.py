"""mailerd against its peers: the same work side by side, in one run, on one machine.

A *peer* is a system under test (mailerd among them), with a private configuration and spool under the work directory
and every process of it in one control group, so that what milters, databases and short-lived processes use is counted.
A *cell* is one kind of work (size, clients, kept or new connections, signed or not). A *round* runs a cell once on
every peer in turn, so that a machine that drifts treats all alike; figures are medians of rounds, ratios are of
the same round.

Load comes from Postfix's smtp-source, whose numbered recipients are the tokens that our sink counts: a message is done
when the sink has acknowledged it, and each run says how many are missing and how many came twice.
"""
