"""Webhooks: applications are told of events by HTTP, in the form of Standard Webhooks 1.0.

`values` what is known of an endpoint, `signing` and `bodies` what a request consists of, `schedule` when it is tried
again, `sending` one attempt; `window` what one endpoint is being told, `endpoint` the telling, `teller` all endpoints
and what they share; `desk` what the API and the command line do. Rows: `store`, `records`.

At least once, also after a crash: an endpoint's position moves in the transaction that records what was told and what
is pending. In order for each message: what failed holds back later events of the same message, and of no other.
"""
