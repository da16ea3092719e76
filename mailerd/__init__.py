"""mailerd: a self-hosted mail delivery daemon.

The way of a message: `intake` takes it and commits it, `queue` keeps it, `delivery` routes, signs and sends it, and
what happened is appended to `events`. What comes back goes through `feedback`, which also tells others. `campaigns`
writes to many, on the same queue. `web` and `cli` look and steer; `relay` puts intake, queue and delivery together,
`worker` runs that in one process, `daemon` starts the workers, each with its `assignment`, and watches them. `sandbox`
is a mail exchanger to try things out with. Imports go only left along

    errors < failpoints < clock < wire < config < logs < processes < db < events < metrics < queue < delivery <
    intake < feedback < campaigns < relay < web < sandbox < assignment < worker < daemon < cli

Glossary (one word, one meaning):

message      content and envelope, accepted once; its id is a time-ordered 63-bit number, outside `msg_` and base 32
recipient    one address of a message, the unit of queueing: (message id, n), n counted from 1
stream       `transactional` or `marketing`: which pool, which expiry, which precedence
flow         whose turn it is within a lane: a tenant, a campaign of one, or a part of either; flows take turns
queue        the recipients waiting for one stream, pool, flow and domain: `stream/pool/flow/domain`
site         the set of hosts that take mail for a domain; all domains with the same set are one destination
source       one address of ours that we send from
pool         sources that stand in for one another
path         source and site: the unit of shaping
claim        recipients that a worker has taken from the queue
owner        the worker that holds a claim; its lease ends when the worker stops beating
session      one SMTP connection to a host
attempt      one try at one message over one session
verdict      what a reply means for one recipient: delivered, deferred or bounced, with a class
event        a fact in the past tense, appended in the transaction of the change it reports
suppression  an address that must not be mailed, and why
report       mail that comes back: a bounce, a complaint, an automatic answer, statistics of DMARC or TLS
token        what goes out with mail and comes back signed: whom a report is about, what a reader leaves
topic        what a reader may unsubscribe from within a stream
upstream     a service that relays mail for us and says by HTTP what became of it
contact      a person whom campaigns may reach, by address; unique in a tenant
list         contacts who subscribed to it; a segment is a list made of conditions, always current
template     what mail is rendered from; its versions never change
campaign     one mailing to an audience: lists and segments, less others
ledger       what became of each (campaign, contact), one row each
hand-over    the transaction that moves rows of the ledger into the queue
tracking     pixel and tracked links in a mail: by campaign, contact, template, and for other mail by message
hit          a request for a pixel or a tracked link, by a person or a machine
follower     whoever reads events in order and remembers how far
endpoint     a URL of an application that is told of events (a webhook)
sink         a file or broker that events are written to
credential   who may submit, as what, and how much
failpoint    a named step at which the fault laboratory kills, stops or fails a process
"""

__version__ = "0.1.0"
