"""Where links of a sending domain point to."""

import pytest

from mailerd.campaigns.tracking.links import tracking_base
from mailerd.config import Config, Http, SendingDomain

CONFIG = Config(
    http=Http(public_url="https://mail.example.com/"),
    domains={
        "shop.example": SendingDomain(tracking_url="https://click.shop.example/"),
        "bücher.example": SendingDomain(tracking_url="https://klick.example"),
        "plain.example": SendingDomain(),
    },
)


@pytest.mark.parametrize(
    ("domain", "base"),
    [
        ("shop.example", "https://click.shop.example"),
        ("News.SHOP.example", "https://click.shop.example"),
        ("bücher.example", "https://klick.example"),
        ("xn--bcher-kva.example", "https://klick.example"),
        ("plain.example", "https://mail.example.com"),
        ("other.example", "https://mail.example.com"),
        ("myshop.example", "https://mail.example.com"),
    ],
)
def test_a_domain_has_the_tracking_host_of_its_own_or_of_its_parent_else_ours(domain: str, base: str) -> None:
    assert tracking_base(CONFIG, domain) == base


def test_without_a_public_url_there_can_be_none() -> None:
    assert tracking_base(Config(http=None), "shop.example") == ""
    assert tracking_base(Config(), "shop.example") == ""
