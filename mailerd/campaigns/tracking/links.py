"""Where pixels and tracked links point to. Pure."""

from mailerd.config import Config
from mailerd.wire.address import domain_to_ascii, with_parents


def tracking_base(config: Config, sender_domain: str) -> str:
    """The URL before `/o/…` and `/c/…` in mail of this domain, without a slash at its end; "": there can be none.

    That of the sending domain or its nearest parent that names one, else `http.public_url`. The listener answers
    whatever host it is asked as.
    """
    named = {domain_to_ascii(name.lower()): domain.tracking_url for name, domain in config.domains.items()}
    for name in with_parents(domain_to_ascii(sender_domain.lower())):
        if url := named.get(name):
            return url.rstrip("/")
    return (config.http.public_url or "").rstrip("/") if config.http else ""
