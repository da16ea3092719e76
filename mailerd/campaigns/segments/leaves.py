"""Single conditions of the JSON, read into values. Pure. See `vocabulary` for the words and `parsing` for the tree."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mailerd.campaigns.contacts.fields import NAME_RULE, is_field_name
from mailerd.campaigns.contacts.values import tag_name
from mailerd.campaigns.segments import reading
from mailerd.campaigns.segments.conditions import (
    All,
    Column,
    Condition,
    Custom,
    Engaged,
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
from mailerd.campaigns.segments.reading import MAX_COUNT, MAX_DAYS, BadValueError
from mailerd.campaigns.segments.vocabulary import (
    ALIASES,
    COMPARISONS,
    CUSTOM,
    ENGAGEMENTS,
    EVERY,
    FIELDS,
    OPERATORS,
    POSITIVE,
    STATES,
    STATUSES,
    TYPES,
    Kind,
    meant,
    similar,
)
from mailerd.queue.ids import CAMPAIGN, LIST, SEGMENT
from mailerd.queue.suppression import normalised

HOW = {"=": "equals", "in": "equals", "contains": "contains", "starts_with": "starts", "ends_with": "ends"}
ENGAGED: dict[str, Engaged] = {
    "opened": "opened",
    "total_opens": "opened",
    "last_opened": "opened",
    "clicked": "clicked",
    "total_clicks": "clicked",
    "last_clicked": "clicked",
    "received": "received",
}
MORE = {  # keys beside field, operator and value
    "lists": ("state",),
    "engagement": ("campaign", "within_days", "link", "machines"),
}
ENGAGEMENT_KEYS = ("engagement", "campaign", "at_least", "within_days", "link", "machines")


class Reference(NamedTuple):
    """A list, segment or campaign that is named, and where."""

    pointer: str
    prefix: str
    id: int


class Leaf(NamedTuple):
    condition: Condition
    references: list[Reference]


def read_field(given: Mapping[Any, Any], definitions: Mapping[str, str]) -> Leaf:
    """`{field, operator, value}`; raises `BadValueError` with the key that is at fault."""
    name, subject, kind = _field(given["field"], definitions)
    operator = _operator(given, name, kind)
    if kind is None:
        kind = _guess(operator, given.get("value"))
    _no_others(given, ("field", "operator", "value", *MORE.get(kind, ())))
    positive = POSITIVE.get(operator, operator)
    if positive == "exists":
        if given.get("value") is not None:
            raise BadValueError(f"{operator} takes no value.", key="value")
    elif "value" not in given:
        raise BadValueError(f"{operator} needs a value.", key="value", code="missing_field")
    with reading.at("value"):
        leaf = _leaf(name, subject, kind, positive, given)
    return leaf if positive == operator else Leaf(Not(leaf.condition), leaf.references)


def _field(given: object, definitions: Mapping[str, str]) -> tuple[str, Subject, Kind | None]:
    """Its name, where it stands, and of what kind it is (None: whatever the value is)."""
    with reading.at("field"):
        name = reading.text(given, empty=False)
    if name in FIELDS:
        return name, Column(name), FIELDS[name]
    custom = name.removeprefix(CUSTOM)
    if not is_field_name(custom):
        if custom != name:
            raise BadValueError(f"The name of a custom field has {NAME_RULE}.", key="field", code="unknown_field")
        raise _unknown(name)
    # A bare name is a custom field too, as the documents write it, unless it looks like a slip.
    if custom == name and name not in definitions and similar(name, list(FIELDS)):
        raise _unknown(name)
    return name, Custom(custom), TYPES[definitions[custom]] if custom in definitions else None


def _unknown(name: str) -> BadValueError:
    detail = f"There is no field {name[:64]!r}{meant(name, list(FIELDS))}"
    known = f" Fields are {', '.join(FIELDS)} and {CUSTOM}NAME."
    return BadValueError(detail + known, key="field", code="unknown_field")


def _operator(given: Mapping[Any, Any], name: str, kind: Kind | None) -> str:
    allowed = EVERY if kind is None else OPERATORS[kind]
    if "operator" not in given:
        detail = f"{name} is compared by one of {', '.join(allowed)}."
        raise BadValueError(detail, key="operator", code="missing_field")
    operator = given["operator"]
    if isinstance(operator, str):
        operator = ALIASES.get(operator, operator)
        if operator in allowed:
            return operator
    raise BadValueError(f"{name} takes one of {', '.join(allowed)}.", key="operator", code="unknown_operator")


def _guess(operator: str, value: object) -> Kind:
    """The kind of a custom field that has no definition: that of the value."""
    positive = POSITIVE.get(operator, operator)
    if positive in ("before", "after", "within_days"):
        return "moment"
    if positive in ("exists", "contains", "starts_with", "ends_with"):
        return "text"
    first = value[0] if positive == "in" and isinstance(value, list) and value else value
    if isinstance(first, bool) and positive == "=":
        return "boolean"
    if isinstance(first, int | float) and not isinstance(first, bool):
        return "number"
    if operator in COMPARISONS:
        if reading.looks_like_a_moment(value):
            return "moment"
        raise BadValueError(f"{operator} needs a number or a date.", key="value")
    return "text"


def _leaf(name: str, subject: Subject, kind: Kind, operator: str, given: Mapping[Any, Any]) -> Leaf:
    value = given.get("value")
    if operator == "exists" and kind in ("text", "moment", "number", "boolean", "list"):
        return Leaf(Exists(subject), [])
    match kind:
        case "text" | "list":
            return Leaf(_text(subject, operator, value), [])
        case "moment":
            return Leaf(_moment(subject, operator, value), [])
        case "number" if isinstance(subject, Custom):
            return Leaf(_number(subject, operator, value), [])
        case "boolean" if isinstance(subject, Custom):
            return Leaf(Flag(subject, reading.flag(value)), [])
        case "status":
            return Leaf(StatusIn(_any_of(operator, value, lambda each: reading.word(each, STATUSES))), [])
        case "tags":
            return Leaf(Tagged(() if operator == "exists" else _any_of(operator, value, _tag)), [])
        case "lists":
            return _lists(operator, given)
        case "segment":
            ids = _any_of(operator, value, lambda each: reading.one_id(SEGMENT, each))
            return Leaf(InSegment(ids), _references("/value", SEGMENT, ids))
        case "engagement":
            return _engagement(name, operator, given)
        case _:
            return Leaf(_last(ENGAGED[name], operator, value), [])


def _any_of(operator: str, value: object, read: Callable[[object], Any]) -> tuple[Any, ...]:
    return reading.several(value, read) if operator == "in" else (read(value),)


def _text(subject: Subject, operator: str, value: object) -> Text:
    values = _any_of(operator, value, lambda each: reading.text(each, empty=HOW[operator] == "equals"))
    if isinstance(subject, Column) and HOW[operator] == "equals":
        if subject.name == "email":
            subject, values = Column("address"), tuple(dict.fromkeys(normalised(each.strip()) for each in values))
        elif subject.name == "domain":
            values = tuple(normalised("@" + each.strip()).removeprefix("@") for each in values)
    return Text(subject, HOW[operator], values)  # type: ignore[arg-type]


def _moment(subject: Subject, operator: str, value: object) -> Condition:
    if operator == "within_days":
        return Recent(subject, reading.whole(value, 1, MAX_DAYS))
    start, end = reading.span(value)
    match operator:
        case ">" | "after":
            return Moment(subject, end, None)
        case ">=":
            return Moment(subject, start, None)
        case "<" | "before":
            return Moment(subject, None, start)
        case "<=":
            return Moment(subject, None, end)
    return Moment(subject, start, end)


def _number(subject: Custom, operator: str, value: object) -> Number:
    if operator in COMPARISONS:
        return Number(subject, operator, (reading.number(value),))  # type: ignore[arg-type]
    return Number(subject, "=", _any_of(operator, value, reading.number))


def _tag(value: object) -> str:
    try:
        return tag_name(reading.text(value, empty=False))
    except BadValueError:
        raise
    except ValueError as error:
        raise BadValueError(f"No tag: {error}.") from None


def _lists(operator: str, given: Mapping[Any, Any]) -> Leaf:
    with reading.at("state"):
        state = reading.word(given.get("state", "subscribed"), (*STATES, "any"))
    found = None if state == "any" else state
    if operator == "exists":
        return Leaf(OnList((), found), [])
    ids = _any_of(operator, given["value"], lambda each: reading.one_id(LIST, each))
    return Leaf(OnList(ids, found), _references("/value", LIST, ids))


def _engagement(name: str, operator: str, given: Mapping[Any, Any]) -> Leaf:
    """`{"field": "opened", "operator": ">=", "value": 3}`, or with campaigns, true or false, or days as the value."""
    value = given.get("value")
    base, references = _engaged(ENGAGED[name], given)
    if operator == "exists":
        return Leaf(base(), references)
    if operator == "within_days":
        return Leaf(base(days=reading.whole(value, 1, MAX_DAYS)), references)
    if operator in ("in", "contains") or isinstance(value, str):
        if operator in COMPARISONS:
            raise BadValueError(f"{operator} needs a number of times.")
        if "campaign" in given:
            raise BadValueError("The value names a campaign already.", key="campaign")
        ids = _any_of(operator, value, lambda each: reading.one_id(CAMPAIGN, each))
        return Leaf(base(campaigns=ids), [*references, *_references("/value", CAMPAIGN, ids)])
    if isinstance(value, bool) and operator == "=":
        return Leaf(base() if value else Not(base()), references)
    return Leaf(_times(operator, reading.whole(value, 0, MAX_COUNT), base), references)


def _times(operator: str, count: int, base: Callable[..., Engagement]) -> Condition:
    def at_least(times: int) -> Condition:
        return base(at_least=times) if times > 0 else All(())

    match operator:
        case ">":
            return at_least(count + 1)
        case ">=":
            return at_least(count)
        case "<":
            return Not(at_least(count))
        case "<=":
            return Not(at_least(count + 1))
    return All((at_least(count), Not(at_least(count + 1))))


def _last(kind: Engaged, operator: str, value: object) -> Condition:
    """When the last one was: since then there was none."""
    if operator == "exists":
        return Engagement(kind)
    if operator == "within_days":
        return Engagement(kind, days=reading.whole(value, 1, MAX_DAYS))
    start, end = reading.span(value)
    match operator:
        case ">" | "after":
            return Engagement(kind, since=end)
        case ">=":
            return Engagement(kind, since=start)
        case "<" | "before":
            return All((Engagement(kind), Not(Engagement(kind, since=start))))
        case "<=":
            return All((Engagement(kind), Not(Engagement(kind, since=end))))
    return All((Engagement(kind, since=start), Not(Engagement(kind, since=end))))


def read_engagement(given: Mapping[Any, Any]) -> Leaf:
    """`{"engagement": "opened", "campaign": "cmp_1", "at_least": 2, "within_days": 30}`, all but the first optional."""
    with reading.at("engagement"):
        word = reading.word(given["engagement"], ENGAGEMENTS)
    _no_others(given, ENGAGEMENT_KEYS)
    kind = word.removeprefix("not_")
    base, references = _engaged(ENGAGED[kind], given)
    with reading.at("at_least"):
        times = reading.whole(given.get("at_least", 1), 1, MAX_COUNT)
    leaf = base(at_least=times)
    return Leaf(leaf if word == kind else Not(leaf), references)


def _engaged(kind: Engaged, given: Mapping[Any, Any]) -> tuple[Callable[..., Engagement], list[Reference]]:
    """What both forms have in common: an engagement to be made with what is special."""
    facts: dict[str, Any] = {}
    references: list[Reference] = []
    campaign = given.get("campaign", "any")
    if campaign != "any":
        with reading.at("campaign"):
            if isinstance(campaign, list):
                ids = reading.several(campaign, lambda each: reading.one_id(CAMPAIGN, each))
                references = _references("/campaign", CAMPAIGN, ids)
            else:
                ids = (reading.one_id(CAMPAIGN, campaign),)
                references = _references("/campaign", CAMPAIGN, ids)
        facts["campaigns"] = ids
    if given.get("within_days") is not None:
        with reading.at("within_days"):
            facts["days"] = reading.whole(given["within_days"], 1, MAX_DAYS)
    if given.get("link") is not None:
        with reading.at("link"):
            if kind != "clicked":
                raise BadValueError("Only what was clicked has a link.")
            facts["link"] = reading.whole(given["link"], 1, MAX_COUNT)
    if "machines" in given:
        with reading.at("machines"):
            facts["machines"] = reading.flag(given["machines"])
            if kind == "received":
                raise BadValueError("Mail is received by people and machines alike.")

    def make(**more: Any) -> Engagement:
        return Engagement(kind, **facts | more)

    return make, references


def _references(pointer: str, prefix: str, ids: tuple[int, ...]) -> list[Reference]:
    return [Reference(pointer, prefix, id_) for id_ in ids]


def _no_others(given: Mapping[Any, Any], keys: tuple[str, ...]) -> None:
    for key in given:
        if key not in keys:
            detail = f"Nothing of this name belongs here{meant(str(key), keys)} It has {', '.join(keys)}."
            raise BadValueError(detail.replace("here It", "here. It"), key=str(key), code="unknown_field")
