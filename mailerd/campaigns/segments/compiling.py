"""Conditions as SQL: one expression on a row of `contacts`, true or false and never null. Pure.

Values are parameters, also names of custom fields, tags and lists. Casts of what stands in custom fields are guarded:
what is no number or no time does not fit, and raises nothing. Each test of another table looks up the one contact
(`OFFSET 0` keeps the planner from turning it round), so that what a row costs does not hang on how many rows those
tables have. Where it is known between which ids the contacts are, who has a tag or stands in a list is read at once for
all of them: a quarter of the time, and no more rows than such contacts have.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import assert_never

from mailerd.campaigns.contacts.status import status_sql
from mailerd.campaigns.ledger import Status
from mailerd.campaigns.segments.conditions import (
    All,
    AnyOf,
    Column,
    Condition,
    Custom,
    Engagement,
    Exists,
    Flag,
    InSegment,
    Moment,
    Not,
    Number,
    OnList,
    Recent,
    StatusIn,
    Subject,
    Tagged,
    Text,
)
from mailerd.campaigns.segments.parameters import Compiled, Parameters
from mailerd.queue.ids import first_id_at

KINDS = {"opened": 1, "clicked": 2}  # of `engagements`
NUMBER = r"^[+-]?[0-9]{1,30}(\.[0-9]{1,30})?$"
"""A text in a custom field that is a number: what comes from files without a definition is text."""

MOMENT = (
    r"^[1-9][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]{1,6})?)?(Z|[+-](0[0-9]|1[0-4]):[0-5][0-9]))?$"
)
"""A date or a time with its offset, as `contacts.fields` lets them in."""

# Days are added to the first of the month: the 31st of February is in March, but no error.
AT = """((left({t}, 7) || '-01')::timestamp + make_interval(days => substr({t}, 9, 2)::int - 1)
        + coalesce(substring({t} FROM '^.{{11}}([0-9:.]+)')::interval, '0')
        - coalesce(substring({t} FROM '[+-][0-9]{{2}}:[0-9]{{2}}$')::interval, '0')) AT TIME ZONE 'UTC'"""
TEXT = "({v} #>> array[]::text[])"
SETS = 8  # of contacts read at once in a statement: each is kept in memory, some MB for 50,000


@dataclass(frozen=True, slots=True)
class Scope:
    """Of which row, for which tenant, at what time; `parameters` gathers the values.

    `span`: the ids of the rows are in (after, end].
    """

    alias: str
    tenant: str
    now: datetime
    parameters: Parameters
    span: tuple[int, int] | None = None
    sets: list[str] = field(default_factory=list)  # the tables that are read at once

    def within(self, after: int | None, end: int | None) -> "Scope":
        """The same for rows with such ids, if both bounds are known."""
        return self if after is None or end is None else replace(self, span=(after, end))

    def text(self, value: str) -> str:
        return self.parameters.add(value, "text")

    def texts(self, values: tuple[str, ...]) -> str:
        return self.parameters.add(list(values), "text[]")

    def moment(self, value: datetime) -> str:
        return self.parameters.add(value, "timestamptz")


def compile_condition(
    condition: Condition, *, tenant: str, now: datetime, alias: str = "c", first: int = 1
) -> Compiled:
    """The condition on the row `alias` of `contacts`; its parameters are numbered from `first` on.

    That the row is of the tenant is not part of it. `InSegment` must have been replaced before (ValueError).
    """
    scope = Scope(alias=alias, tenant=tenant, now=now, parameters=Parameters(first))
    return scope.parameters.compiled(condition_sql(condition, scope))


def condition_sql(condition: Condition, scope: Scope) -> str:
    """As `compile_condition`, for a statement with other parameters beside it."""
    match condition:
        case All(parts):
            return _joined(" AND ", parts, scope) or "true"
        case AnyOf(parts):
            return _joined(" OR ", parts, scope) or "false"
        case Not(part):
            return f"NOT ({condition_sql(part, scope)})"
        case Exists(subject):
            return _exists(subject, scope)
        case Text():
            return _text(condition, scope)
        case Number():
            return _number(condition, scope)
        case Flag(subject, value):
            wanted = scope.parameters.add(value, "boolean")
            return f"coalesce({_custom(subject, scope)} = to_jsonb({wanted}), false)"
        case Moment(subject, start, end):
            return _within(subject, start, end, scope)
        case Recent(subject, days):
            last = scope.now + timedelta(microseconds=1)
            return _within(subject, scope.now - timedelta(days=days), last, scope)
        case StatusIn(words):
            status = status_sql(scope.alias, now=scope.moment(scope.now))
            return f"{status} = ANY ({scope.texts(words)})"
        case Tagged():
            return _tagged(condition, scope)
        case OnList():
            return _on_list(condition, scope)
        case Engagement():
            return _received(condition, scope) if condition.kind == "received" else _engaged(condition, scope)
        case InSegment():
            raise ValueError("segments are replaced by their conditions first")
        case _:
            assert_never(condition)


def _joined(word: str, parts: tuple[Condition, ...], scope: Scope) -> str:
    return word.join(f"({condition_sql(part, scope)})" for part in parts)


def _custom(subject: Custom, scope: Scope) -> str:
    return f"({scope.alias}.custom_fields -> {scope.text(subject.name)})"


def _column(subject: Column, scope: Scope) -> str:
    if subject.name == "domain":
        return f"split_part({scope.alias}.address, '@', -1)"
    return f"{scope.alias}.{subject.name}"


def _exists(subject: Subject, scope: Scope) -> str:
    if isinstance(subject, Custom):
        empty = "('null'::jsonb, '\"\"'::jsonb, '[]'::jsonb)"
        return f"coalesce({_custom(subject, scope)} NOT IN {empty}, false)"
    if subject.name.endswith("_at"):
        return f"{_column(subject, scope)} IS NOT NULL"
    return f"{_column(subject, scope)} <> ''"


def _text(leaf: Text, scope: Scope) -> str:
    if isinstance(leaf.subject, Column):
        if leaf.subject.name == "address":  # normalised already, and found by its index
            return f"{scope.alias}.address = ANY ({scope.texts(leaf.values)})"
        return _compared(f"lower({_column(leaf.subject, scope)})", leaf.how, leaf.values, scope)
    value = _custom(leaf.subject, scope)
    whole = "equals" if leaf.how == "contains" else leaf.how
    return (
        f"CASE jsonb_typeof({value})"
        f" WHEN 'string' THEN {_compared(f'lower{TEXT.format(v=value)}', leaf.how, leaf.values, scope)}"
        f" WHEN 'array' THEN EXISTS (SELECT FROM jsonb_array_elements_text({value}) AS e (v)"
        f" WHERE {_compared('lower(e.v)', whole, leaf.values, scope)}) ELSE false END"
    )


def _compared(value: str, how: str, wanted: tuple[str, ...], scope: Scope) -> str:
    """No LIKE: what people look for has no wildcards."""
    if len(wanted) > 1:
        return f"{value} IN (SELECT lower(w) FROM unnest({scope.texts(wanted)}) AS u (w))"
    one = f"lower({scope.text(wanted[0])})"
    return {
        "equals": f"{value} = {one}",
        "contains": f"strpos({value}, {one}) > 0",
        "starts": f"starts_with({value}, {one})",
        "ends": f"right({value}, length({one})) = {one}",
    }[how]


def _number(leaf: Number, scope: Scope) -> str:
    value = _custom(leaf.subject, scope)
    text = TEXT.format(v=value)
    test = f"{text}::numeric {leaf.how} ANY ({scope.parameters.add(list(leaf.values), 'numeric[]')})"
    return (
        f"CASE jsonb_typeof({value}) WHEN 'number' THEN {test}"
        f" WHEN 'string' THEN CASE WHEN {text} ~ '{NUMBER}' THEN {test} ELSE false END ELSE false END"
    )


def _within(subject: Subject, start: datetime | None, end: datetime | None, scope: Scope) -> str:
    bounds = ", ".join(scope.parameters.add(bound, "timestamptz") for bound in (start, end))
    if isinstance(subject, Column):
        return f"coalesce(tstzrange({bounds}, '[)') @> {_column(subject, scope)}, false)"
    value = _custom(subject, scope)
    text = TEXT.format(v=value)
    return (
        f"CASE jsonb_typeof({value}) WHEN 'string' THEN CASE WHEN {text} ~ '{MOMENT}'"
        f" THEN tstzrange({bounds}, '[)') @> ({AT.format(t=text)}) ELSE false END ELSE false END"
    )


def _tagged(leaf: Tagged, scope: Scope) -> str:
    if not leaf.names:
        return _looked_up("contact_tags", [], scope)
    names = scope.texts(leaf.names)
    tags = f"(SELECT t.id FROM tags AS t WHERE t.tenant = {scope.text(scope.tenant)} AND t.name = ANY ({names}))"
    return _among("contact_tags", [f"m.tag_id = ANY (ARRAY {tags})"], scope)


def _on_list(leaf: OnList, scope: Scope) -> str:
    """Ids are of the tenant's own lists, and contacts of its own: no list of another tenant has any of them."""
    tests = []
    if leaf.ids:
        tests.append(f"m.list_id = ANY ({scope.parameters.add(list(leaf.ids), 'bigint[]')})")
    if leaf.state is not None:
        tests.append(f"m.status = {scope.text(leaf.state)}")
    return (_among if leaf.ids else _looked_up)("list_contacts", tests, scope)


def _among(table: str, tests: list[str], scope: Scope) -> str:
    """Has the contact such a row? `tests` leave none of other tenants, so that not too much is read of a span."""
    if scope.span is None or len(scope.sets) == SETS:
        return _looked_up(table, tests, scope)
    scope.sets.append(table)
    after, end = (scope.parameters.add(bound, "bigint") for bound in scope.span)
    where = " AND ".join([*tests, f"m.contact_id > {after}", f"m.contact_id <= {end}"])
    # IS TRUE: a set and no join, whose plan would hang on how much the planner knows of rows that came a moment ago.
    return f"({scope.alias}.id IN (SELECT m.contact_id FROM {table} AS m WHERE {where})) IS TRUE"


def _looked_up(table: str, tests: list[str], scope: Scope) -> str:
    where = " AND ".join([f"m.contact_id = {scope.alias}.id", *tests])
    return f"EXISTS (SELECT FROM {table} AS m WHERE {where} OFFSET 0)"


def _engaged(leaf: Engagement, scope: Scope) -> str:
    tests = [f"m.contact_id = {scope.alias}.id", f"m.kind = {KINDS[leaf.kind]}"]
    if not leaf.machines:
        tests.append("NOT m.machine")
    tests += [f"m.at >= {scope.moment(since)}" for since in _since(leaf, scope)]
    if leaf.campaigns:
        tests.append(f"m.campaign_id = ANY ({scope.parameters.add(list(leaf.campaigns), 'bigint[]')})")
    if leaf.link is not None:
        tests.append(f"m.link = {scope.parameters.add(leaf.link, 'int')}")
    return _at_least(leaf.at_least, "engagements", tests, scope)


def _received(leaf: Engagement, scope: Scope) -> str:
    """When: the id of the message tells, which is made at the hand-over."""
    tests = [f"m.contact_id = {scope.alias}.id", f"m.status = {int(Status.DELIVERED)}"]
    if leaf.campaigns:
        tests.append(f"m.campaign_id = ANY ({scope.parameters.add(list(leaf.campaigns), 'bigint[]')})")
    for since in _since(leaf, scope):
        first = first_id_at(max(0, int(since.timestamp() * 1000)))
        tests.append(f"m.message_id >= {scope.parameters.add(first, 'bigint')}")
    return _at_least(leaf.at_least, "campaign_contacts", tests, scope)


def _since(leaf: Engagement, scope: Scope) -> list[datetime]:
    found = [leaf.since] if leaf.since is not None else []
    return found if leaf.days is None else [*found, scope.now - timedelta(days=leaf.days)]


def _at_least(count: int, table: str, tests: list[str], scope: Scope) -> str:
    """Looks at no more rows than it takes."""
    rows = f"FROM {table} AS m WHERE {' AND '.join(tests)}"
    if count <= 1:
        return f"EXISTS (SELECT {rows} OFFSET 0)"
    return f"EXISTS (SELECT {rows} OFFSET {scope.parameters.add(count - 1, 'bigint')})"
