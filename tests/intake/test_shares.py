"""Spreading connections over workers."""

from pathlib import Path

from mailerd.intake.shares import Shares


def test_a_worker_is_ahead_when_another_has_clearly_fewer_connections(tmp_path: Path) -> None:
    one, two = (Shares(tmp_path / "connections", slot, 2) for slot in (0, 1))
    one.change(1)
    assert not one.ahead
    one.change(1)
    assert one.ahead
    assert not two.ahead
    two.change(1)
    assert not one.ahead


def test_one_worker_alone_is_never_ahead(tmp_path: Path) -> None:
    alone = Shares(tmp_path / "connections", 0, 1)
    alone.change(100)
    assert not alone.ahead


def test_a_restarted_worker_begins_at_zero(tmp_path: Path) -> None:
    Shares(tmp_path / "connections", 1, 2).change(50)
    one = Shares(tmp_path / "connections", 0, 2)
    Shares(tmp_path / "connections", 1, 2)
    one.change(2)
    assert one.ahead
