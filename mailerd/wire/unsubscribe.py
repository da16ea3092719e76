"""What stands in the link by which a reader unsubscribes: from what, and by which mail."""

from typing import NamedTuple

from mailerd.wire.tokens import Tokens

PURPOSE = "unsubscribe"
SEPARATOR = "\0"  # no address, tenant, stream, topic or campaign has it


class Subscription(NamedTuple):
    """What a recipient of message `message_id` may leave: mail of this stream, and topic if there is one."""

    tenant: str
    stream: str
    topic: str
    campaign: str
    address: str
    message_id: int
    n: int

    def seal(self, tokens: Tokens) -> str:
        """As it stands in a URL; good for ever, whatever is forgotten of the message."""
        return tokens.seal(SEPARATOR.join(map(str, self)).encode())


def read_subscription(tokens: Tokens, text: str) -> Subscription | None:
    """What was sealed; None for what is no token of ours."""
    facts = tokens.open(text)
    if facts is None:
        return None
    tenant, stream, topic, campaign, address, message_id, n = facts.decode().split(SEPARATOR)
    return Subscription(tenant, stream, topic, campaign, address, int(message_id), int(n))
