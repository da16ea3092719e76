"""All that deals with contacts, put together once."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from mailerd.campaigns.contacts.consent import ConsentStore
from mailerd.campaigns.contacts.definitions import DefinitionStore
from mailerd.campaigns.contacts.erasure import ErasureStore
from mailerd.campaigns.contacts.lists import ListStore
from mailerd.campaigns.contacts.members import MemberStore
from mailerd.campaigns.contacts.person import PersonStore
from mailerd.campaigns.contacts.store import ContactStore
from mailerd.campaigns.contacts.subscriptions import SubscriptionStore
from mailerd.campaigns.contacts.tags import TagStore
from mailerd.db import Pool
from mailerd.queue.suppression import SuppressionStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactBook:
    """The stores of contacts, which share a pool and a clock."""

    contacts: ContactStore
    lists: ListStore
    members: MemberStore
    tags: TagStore
    definitions: DefinitionStore
    subscriptions: SubscriptionStore
    consents: ConsentStore
    erasures: ErasureStore
    persons: PersonStore


def build_contacts(
    pool: Pool, suppressions: SuppressionStore, secret: bytes, clock: Callable[[], datetime]
) -> ContactBook:
    """`secret` is the installation's, by which erased addresses are hashed."""
    tags, definitions, members = TagStore(pool), DefinitionStore(pool), MemberStore(pool)
    contacts = ContactStore(pool, secret, clock, tags, definitions, members, suppressions)
    subscriptions = SubscriptionStore(pool, suppressions, clock)
    consents = ConsentStore(pool)
    return ContactBook(
        contacts=contacts,
        lists=ListStore(pool),
        members=members,
        tags=tags,
        definitions=definitions,
        subscriptions=subscriptions,
        consents=consents,
        erasures=ErasureStore(pool, secret, clock),
        persons=PersonStore(pool, contacts, subscriptions, consents),
    )
