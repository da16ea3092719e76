"""The fault laboratory: a daemon under load that is hurt, and two ledgers that are compared afterwards.

| fault | test |
| --- | --- |
| kill -9 of worker, daemon, postmaster, database session, at random | test_kills; `scripts/bench faults` |
| kill -9 at named steps (mailerd/failpoints.py) | test_steps; all of them: `scripts/bench faults` |
| the same amid a campaign | test_campaigns; `scripts/bench faults`, `scripts/bench campaign --crash` |
| the same of webhooks and sinks | test_webhooks |
| all of a machine at once; start among stale pid files, locks and sockets | test_kills; `scripts/bench faults` |
| a worker, or worker and daemon, stopped for longer than a lease | `scripts/bench faults` |
| two nodes, one of which dies | test_nodes |
| leases, claims and commits that end at the wrong moment | test_leases |
| PostgreSQL restarts; SIGTERM under load; two daemons on one directory | test_restarts |
| PostgreSQL fails over to a standby; slow commits; no connections left | test_database |
| the disk of everything is full; that of the log is | test_disk_full, tests/test_logs.py |
| peers that reset, close or fall silent at every SMTP step | test_exchanger, test_network |
| name servers dead, wrong or slow | test_network, tests/delivery/test_resolver.py |
| the clock jumps by hours, back and forward | test_network |
| a provider that takes nothing | test_blocked |
| suppression while processes are killed, frozen, restarted | test_suppression |

`laboratory` has the daemon and the comparison, `steps` the ways to the named steps, `history` the order of events.
"""
