"""The fixtures of the SMTP intake serve here, too."""

from tests.intake.conftest import lonely, outbox

__all__ = ["lonely", "outbox"]
