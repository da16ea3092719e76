"""What stands in the link to a contact's preferences: whose they are, and by which mail it came."""

from typing import NamedTuple

from mailerd.wire.tokens import Tokens

PURPOSE = "preferences"
SEPARATOR = "\0"  # no tenant and no campaign has it


class Preferences(NamedTuple):
    """The contact `contact_id` of `tenant`; `message_id` 0: by no mail in particular."""

    tenant: str
    contact_id: int
    campaign: str = ""
    message_id: int = 0

    def seal(self, tokens: Tokens) -> str:
        """As it stands in a URL; good for ever."""
        return tokens.seal(SEPARATOR.join(map(str, self)).encode())


def read_preferences(tokens: Tokens, text: str) -> Preferences | None:
    """What was sealed; None for what is no token of ours."""
    facts = tokens.open(text)
    if facts is None:
        return None
    tenant, contact_id, campaign, message_id = facts.decode().split(SEPARATOR)
    return Preferences(tenant, int(contact_id), campaign, int(message_id))
