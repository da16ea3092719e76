"""Conditions as SQL are true of exactly those contacts of whom they are true in plain Python."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailerd import db
from mailerd.campaigns.segments.compiling import compile_condition
from mailerd.campaigns.segments.references import ReferenceStore
from mailerd.db import Pool
from tests.campaigns.segments.world import (
    DATES,
    DOMAINS,
    NOW,
    STATES,
    TAGS,
    TENANT,
    TEXTS,
    TIMES,
    World,
    build,
    holds,
)
from tests.support.postgres import TestPostgres

COMPARISONS = [">", ">=", "<", "<="]
GOOD_DATES = ["2026-11-22", "2024-02-29", "2026-03-03", *TIMES]
NUMBERS = [0, 1, -1.5, 3, 3.0, 0.1, 10**12]


@dataclass
class Setting:
    loop: asyncio.AbstractEventLoop
    pool: Pool
    world: World

    def found(self, tree: dict[str, Any]) -> set[int]:
        return self.loop.run_until_complete(self._found(tree))

    async def _found(self, tree: dict[str, Any]) -> set[int]:
        condition = await ReferenceStore(self.pool).condition(TENANT, tree)
        compiled = compile_condition(condition, tenant=TENANT, now=NOW, first=2)
        sql = f"SELECT id, {compiled.sql} AS fits FROM contacts AS c WHERE tenant = $1"
        rows = await self.pool.fetch(sql, TENANT, *compiled.parameters)
        assert all(isinstance(row["fits"], bool) for row in rows), "never null"
        return {row["id"] for row in rows if row["fits"]}

    def expected(self, tree: dict[str, Any]) -> set[int]:
        return {person.id for person in self.world.people if holds(tree, person, self.world)}


@pytest.fixture(scope="module")
def setting(postgres: TestPostgres) -> Iterator[Setting]:
    loop = asyncio.new_event_loop()
    name = loop.run_until_complete(postgres.fresh())
    pool = loop.run_until_complete(db.connect_pool(postgres.url_of(name), max=1))

    async def fill() -> World:
        async with pool.acquire() as connection, connection.transaction():
            return await build(connection, random.Random(5))

    yield Setting(loop, pool, loop.run_until_complete(fill()))
    loop.run_until_complete(pool.close())
    loop.run_until_complete(postgres.drop(name))
    loop.close()


def leaf(field: str, operator: str, value: Any = None, **more: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, **({} if value is None else {"value": value}), **more}


def texts(field: str, pool: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    some = [text for text in pool if text]
    return st.one_of(
        st.builds(leaf, st.just(field), st.sampled_from(["=", "!="]), st.sampled_from(pool)),
        st.builds(
            leaf,
            st.just(field),
            st.sampled_from(["contains", "not_contains", "starts_with", "ends_with"]),
            st.sampled_from(some),
        ),
        st.builds(leaf, st.just(field), st.sampled_from(["in", "not_in"]), st.lists(st.sampled_from(pool), min_size=1)),
        st.builds(leaf, st.just(field), st.sampled_from(["exists", "not_exists"])),
    )


def moments(field: str) -> st.SearchStrategy[dict[str, Any]]:
    words = [*COMPARISONS, "before", "after", "=", "!="]
    return st.one_of(
        st.builds(leaf, st.just(field), st.sampled_from(words), st.sampled_from(GOOD_DATES)),
        st.builds(
            leaf, st.just(field), st.sampled_from(["within_days", "not_within_days"]), st.sampled_from([1, 2, 30])
        ),
        st.builds(leaf, st.just(field), st.sampled_from(["exists", "not_exists"])),
    )


def numbers(field: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(
        st.builds(leaf, st.just(field), st.sampled_from([*COMPARISONS, "=", "!="]), st.sampled_from(NUMBERS)),
        st.builds(
            leaf, st.just(field), st.sampled_from(["in", "not_in"]), st.lists(st.sampled_from(NUMBERS), min_size=1)
        ),
    )


def leaves(world: World) -> st.SearchStrategy[dict[str, Any]]:
    lists = [f"lst_{id_}" for id_ in world.lists]
    segments = [f"seg_{id_}" for id_ in world.segments]
    campaigns = [f"cmp_{id_}" for id_ in world.campaigns]
    days = st.sampled_from([1, 10, 30])
    campaign = st.sampled_from([*campaigns, "any", campaigns])
    any_custom = st.sampled_from(["city", "any_thing", "custom_fields.city"])
    engaged = st.fixed_dictionaries(
        {"engagement": st.sampled_from(["opened", "not_opened", "clicked", "not_clicked"])},
        optional={"campaign": campaign, "within_days": days, "at_least": st.sampled_from([1, 2, 3])}
        | {"machines": st.booleans()},
    )
    received = st.fixed_dictionaries(
        {"engagement": st.sampled_from(["received", "not_received"])},
        optional={"campaign": campaign, "within_days": days, "at_least": st.sampled_from([1, 2])},
    )
    clicked = st.fixed_dictionaries({"engagement": st.just("clicked"), "link": st.sampled_from([1, 2])})
    totals = st.sampled_from(["opened", "clicked", "received", "total_opens", "total_clicks"])
    return st.one_of(
        *(texts(field, TEXTS) for field in ("first_name", "last_name", "note", "custom_fields.city")),
        texts("domain", [*DOMAINS, "GMAIL.com"]),
        texts("email", ["ann", "ann1@gmail.com", "BOB2@example.org", "@", "x_y"]),
        texts("time_zone", ["", "europe/berlin", "Asia"]),
        *(moments(field) for field in ("created_at", "unsubscribed_at", "joined", "custom_fields.born", "last_opened")),
        *(numbers(field) for field in ("level", "city", "any_thing")),
        st.builds(leaf, any_custom, st.sampled_from([*COMPARISONS, "before", "after"]), st.sampled_from(GOOD_DATES)),
        st.builds(leaf, st.sampled_from(["ok", "city"]), st.sampled_from(["=", "!="]), st.booleans()),
        st.builds(
            leaf, st.just("colours"), st.sampled_from(["contains", "not_contains"]), st.sampled_from(["RED", "00%"])
        ),
        st.builds(leaf, any_custom, st.sampled_from(["contains", "not_contains"]), st.sampled_from(["red", "%", "_"])),
        st.builds(leaf, any_custom, st.sampled_from(["=", "!="]), st.sampled_from([*TEXTS, *DATES])),
        st.builds(leaf, any_custom, st.sampled_from(["exists", "not_exists"])),
        st.builds(leaf, st.just("status"), st.sampled_from(["=", "!="]), st.sampled_from(["active", "bounced"])),
        st.builds(leaf, st.just("status"), st.just("in"), st.just(["complained", "unsubscribed", "suppressed"])),
        st.builds(leaf, st.just("tags"), st.sampled_from(["contains", "!="]), st.sampled_from([*TAGS, "none"])),
        st.builds(leaf, st.just("tags"), st.sampled_from(["exists", "not_exists"])),
        st.builds(leaf, st.just("tags"), st.just("in"), st.just(["vip", "new"])),
        st.builds(
            leaf,
            st.just("lists"),
            st.sampled_from(["contains", "!=", "="]),
            st.sampled_from(lists),
            state=st.sampled_from([*STATES, "any"]),
        ),
        st.builds(leaf, st.just("lists"), st.sampled_from(["in", "not_in"]), st.just(lists[:2])),
        st.builds(leaf, st.just("segment"), st.sampled_from(["=", "!="]), st.sampled_from(segments)),
        st.builds(leaf, st.just("segment"), st.sampled_from(["in", "not_in"]), st.just(segments)),
        engaged,
        received,
        clicked,
        st.builds(leaf, totals, st.sampled_from([*COMPARISONS, "=", "!="]), st.sampled_from([0, 1, 2])),
        st.builds(leaf, totals, st.sampled_from(["=", "!="]), st.booleans()),
        st.builds(leaf, totals, st.sampled_from(["=", "contains", "not_contains"]), st.sampled_from(campaigns)),
        st.builds(leaf, totals, st.sampled_from(["within_days", "not_within_days"]), days),
    )


def trees(leaf: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.fixed_dictionaries({"and": st.lists(inner, min_size=1, max_size=3)}),
            st.fixed_dictionaries({"or": st.lists(inner, min_size=1, max_size=3)}),
            st.fixed_dictionaries({"not": inner}),
        ),
        max_leaves=6,
    )


def test_any_tree_is_true_of_the_same_contacts_in_sql_and_in_python(setting: Setting) -> None:
    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(trees(leaves(setting.world)))
    def check(tree: dict[str, Any]) -> None:
        assert setting.found(tree) == setting.expected(tree)

    check()


def test_wildcards_and_quotes_are_letters_like_all_others(setting: Setting) -> None:
    for text in ("%", "_", "\\", "'", '"', "; --"):
        tree = leaf("first_name", "contains", text)
        assert setting.found(tree) == setting.expected(tree)
        assert 0 < len(setting.found(tree)) < len(setting.world.people)


def test_a_negation_is_true_of_exactly_the_others(setting: Setting) -> None:
    everybody = {person.id for person in setting.world.people}
    for field, positive, negative, value in (
        ("custom_fields.city", "=", "!=", "Ann"),
        ("level", "in", "not_in", [3, 1]),
        ("joined", "within_days", "not_within_days", 3),
        ("tags", "contains", "not_contains", "vip"),
        ("opened", "within_days", "not_within_days", 10),
    ):
        found = setting.found(leaf(field, positive, value))
        assert found
        assert setting.found(leaf(field, negative, value)) == everybody - found
