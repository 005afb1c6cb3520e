"""The shape of a policy file: what pydantic checks, and what the JSON schema says.

Mappings stay mappings here, because a key that was not written differs from one that says the default: `defaults:` are
merged in between. `build` makes the policy of them.
"""

# No `from __future__ import annotations`: pydantic reads these, and each would be text to compile at every start.

import posixpath
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Annotated, Any, Literal, Required

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, ConfigDict, Discriminator, Field, GetPydanticSchema, Tag, TypeAdapter, with_config
from pydantic_core.core_schema import no_info_plain_validator_function
from typing_extensions import TypedDict  # pydantic refuses `typing.TypedDict` before Python 3.12

from agentguard.policy import grammar
from agentguard.policy.hosts import HostPattern
from agentguard.policy.model import (
    Ambiguous,
    Bound,
    Mode,
    OnStoreDown,
    Over,
    Per,
    Unbounded,
    Unit,
    Window,
)
from agentguard.policy.providers import PROVIDER_HOSTS

SOURCES = ("env", "file", "keyring", "vault", "aws")
CHANNELS = ("pagerduty", "slack", "alertmanager", "webhook", "email", "log", "apprise")


def _text(value: object, example: str) -> str:
    if isinstance(value, str):
        return value
    why = "; a number may already have been rounded, so write it as text" if isinstance(value, float) else ""
    raise ValueError(f"expected {example}, found {found(value)}{why}")


def found(value: object) -> str:
    """A value as a message shows it: short, and never the inside of something large."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case bool():
            return "true" if value else "false"
        case str() if len(value) > 60:
            return f"{value[:57]!r}..."
        case _:
            return repr(value)[:80]


def _name(value: object) -> str:
    name = _text(value, "a name in text")
    if not name or name != name.strip() or not name.isprintable() or len(name) > 128:
        raise ValueError(f"a name is 1 to 128 printable characters without space around them, found {found(name)}")
    return name


def _host(value: object) -> HostPattern:
    return HostPattern.parse(_text(value, "a host such as 'api.ourservice.com'"))


def _amount(value: object) -> grammar.WrittenAmount:
    text = _text(value, 'an amount such as "$5.00" or "5000 tokens"')
    return grammar.read_amount(text)


def _rate(value: object) -> grammar.WrittenAmount:
    amount = _amount(value)
    if amount.rate_seconds is None:
        raise ValueError(f"expected a rate such as '1000_requests_per_hour', found {found(value)}")
    return amount


def _window(value: object) -> Window:
    text = _text(value, 'minute, hour, day, month or a rolling duration such as "90s"')
    try:
        return grammar.read_window(text)
    except ValueError as error:
        raise ValueError(f"{error}{nearest_word(text, grammar.CLOCK_WINDOWS)}") from None


def _path(value: object) -> str:
    path = _text(value, "a path such as '/customers/*'")
    if not path.startswith("/"):
        raise ValueError(f"a path begins with '/', found {found(path)}")
    return path


def _socket_path(value: object) -> str:
    path = _text(value, "a path such as '/run/postgresql'")
    if path.startswith("@") and len(path) > 1:
        return path
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ValueError(f"a socket's path begins with '/' and has no '..', an abstract one begins with '@', found {found(path)}")
    return posixpath.normpath("/" + path.lstrip("/"))


def _source(value: object) -> str:
    kind, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind in SOURCES and colon and rest:
        return str(value)
    # What stands here may be the secret itself, so it is not repeated.
    kinds = ", ".join(f"{source}:" for source in SOURCES)
    raise ValueError(f"expected where the secret is kept, such as env:OPENAI_API_KEY (one of {kinds}); never the secret")


def _provider(value: object) -> str:
    name = _text(value, "a provider such as 'openai'")
    if name not in PROVIDER_HOSTS:
        raise ValueError(f"unknown provider {found(name)}{did_you_mean(name, PROVIDER_HOSTS)}")
    return name


def _store(value: object) -> str:
    if isinstance(value, str) and re.match(r"[a-z][a-z0-9+]*://", value):
        return value
    raise ValueError("expected a URL such as redis://redis:6379/0, sqlite:///path or memory://")  # may carry a password


def _channel_kind(value: object) -> str:
    if value in CHANNELS:
        return str(value)
    raise ValueError(f"unknown kind of channel {found(value)}{did_you_mean(str(value), CHANNELS)}")


def _deny(value: object) -> str:
    if value == "deny":
        return "deny"
    raise ValueError(f"expected 'deny' or a price such as {{input: $10, output: $50}}, found {found(value)}")


def _version(value: object) -> int:
    if value == 1 and type(value) is int:
        return 1
    raise ValueError(f"this agentguard reads version 1, found {found(value)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the one it resembles, or all when they are few."""
    import difflib  # for a message only

    words = sorted(known)
    by_lower = {name.lower(): name for name in words}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {by_lower[close[0]]!r}?"
    return f"; known: {', '.join(words)}" if 0 < len(words) <= 20 else ""


def nearest_word(word: str, known: Iterable[str]) -> str:
    """The end of a message that has listed the known words already: the one that an unknown word resembles, if one does."""
    hint = did_you_mean(word, known)
    return hint if hint.startswith("; did you mean") else ""


def _read(reader: Callable[[Any], object], **schema: Any) -> GetPydanticSchema:
    """Text or a number that a function of ours reads, and its JSON schema.

    A `PlainValidator` would first work out how pydantic itself reads and writes the type.
    """
    return GetPydanticSchema(
        get_pydantic_core_schema=lambda _type, _handler: no_info_plain_validator_function(reader),
        get_pydantic_json_schema=lambda _core, _handler: dict(schema),
    )


def _text_like(reader: Callable[[Any], object], *examples: str) -> GetPydanticSchema:
    return _read(reader, type="string", examples=list(examples))


Name = Annotated[str, _read(_name, type="string", minLength=1, maxLength=128)]
Provider = Annotated[str, _read(_provider, type="string", enum=sorted(PROVIDER_HOSTS))]
Host = Annotated[HostPattern, _text_like(_host, "*.ourservice.com", "10.1.0.0/16:8443")]
AmountText = Annotated[grammar.WrittenAmount, _text_like(_amount, "5000 tokens", "$20.00", "4 concurrent_calls")]
RateText = Annotated[grammar.WrittenAmount, _text_like(_rate, "1000_requests_per_hour")]
WindowText = Annotated[Window, _text_like(_window, "day", "90s")]
Money = Annotated[int, _text_like(grammar.read_money, "$1.25")]
Percent = Annotated[int, _text_like(grammar.read_percent, "80%")]
Seconds = Annotated[float, _text_like(grammar.read_duration, "30s")]
Range = Annotated[tuple[float, float], _text_like(grammar.read_range, "500-1000")]
SocketPath = Annotated[str, _text_like(_socket_path, "/run/postgresql", "@name")]
PathText = Annotated[str, _text_like(_path, "/customers/*")]
SourceText = Annotated[str, _text_like(_source, "env:OPENAI_API_KEY")]
StoreURL = Annotated[str, _text_like(_store, "redis://redis:6379/0", "memory://")]
ChannelKind = Annotated[str, _read(_channel_kind, type="string", enum=list(CHANNELS))]
Version = Annotated[int, _read(_version, const=1)]
Days = Annotated[int, Ge(1), Le(36_500)]
Part = Annotated[int, _text_like(grammar.read_part, "12.5%")]
Weight = Annotated[int, Ge(1), Le(1_000_000)]
Tokens = Annotated[int, Ge(1), Le(grammar.MAX_AMOUNT)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]

_closed = with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
_word = Field(strict=False)  # an enum's member is written as its word


@_closed
class ApiKeysShape(TypedDict, total=False):
    """`security.api_keys`."""

    rotation_days: Days
    scope: list[Name]
    rate_limit: RateText


@_closed
class SecurityShape(TypedDict, total=False):
    """`security`."""

    api_keys: ApiKeysShape


@_closed
class ExternalCallsShape(TypedDict, total=False):
    """`external_calls`."""

    allowed_domains: list[Host]
    blocked_domains: list[Host]
    enforcement: Literal["in_process", "kernel", "auto"]
    allow_private: bool
    allow_metadata: bool
    allow_udp: bool
    unix_sockets: list[SocketPath]


@_closed
class PriceShape(TypedDict, total=False):
    """What a model costs, in USD per million tokens."""

    input: Required[Money]
    output: Required[Money]
    cache_read: Money
    cache_write: Money


@_closed
class ShareShape(TypedDict, total=False):
    """An agent's part of the fleet's limits."""

    guarantee: Part
    weight: Annotated[int, Ge(0), Le(1_000_000)]


Share = Annotated[
    Annotated[Weight, Tag("|weight")] | Annotated[ShareShape, Tag("|share")],
    Discriminator(lambda value: "|share" if isinstance(value, dict) else "|weight"),
]

UnknownPrice = Annotated[
    Annotated[str, _read(_deny, const="deny"), Tag("|deny")] | Annotated[PriceShape, Tag("|price")],
    Discriminator(lambda value: "|price" if isinstance(value, dict) else "|deny"),
]


@_closed
class LLMShape(TypedDict, total=False):
    """`llm`."""

    providers: list[Provider]
    models: list[Name]
    max_output_tokens: Tokens
    bound: Annotated[Bound, _word]
    unbounded_output: Annotated[Unbounded, _word]
    include_usage: bool
    ambiguous: Annotated[Ambiguous, _word]
    prices: dict[Name, PriceShape]
    unknown_price: UnknownPrice


@_closed
class LimitFields(TypedDict, total=False):
    """One entry of `budgets` or `limits.fleet`."""

    limit: Required[AmountText]
    per: Annotated[Per, _word]
    every: WindowText
    over: Annotated[Over, _word]
    warn_at: list[Percent]
    on_store_down: Annotated[OnStoreDown, _word]


def _agrees(limit: LimitFields) -> LimitFields:
    """A limit whose parts make sense together."""
    amount = limit["limit"]
    if "every" in limit and amount.rate_seconds is not None:
        raise ValueError(f"{amount.text!r} says its window itself: remove 'every'")
    if "every" in limit and amount.unit is Unit.CONCURRENT_CALLS:
        raise ValueError("calls at once have no window: remove 'every'")
    if limit.get("per") is Per.CALL and ("every" in limit or amount.unit in {Unit.CALLS, Unit.CONCURRENT_CALLS}):
        raise ValueError("a limit per call bounds the tokens or the money of each call: it counts no calls and no window")
    return limit


LimitShape = Annotated[LimitFields, AfterValidator(_agrees)]


def _is_shared(limit: LimitFields) -> LimitFields:
    if limit.get("per") is Per.AGENT:
        raise ValueError("a limit of the fleet is shared by its agents: one per agent belongs to defaults.budgets")
    return limit


FleetLimitShape = Annotated[LimitShape, AfterValidator(_is_shared)]


@_closed
class ToolsShape(TypedDict, total=False):
    """`tools`."""

    allowed: list[Name]
    proposed: Literal["allow", "deny"]


@_closed
class SensitivityShape(TypedDict, total=False):
    """`monitoring.sensitivity`."""

    false_alerts_per_week: Positive


@_closed
class MonitoringShape(TypedDict, total=False):
    """`monitoring`."""

    alert_on_anomaly: bool
    track_token_usage: bool
    sensitivity: SensitivityShape
    typical: dict[Name, Range]
    alert_at: dict[Name, NotNegative]


@_closed
class AgentShape(TypedDict, total=False):
    """What holds for an agent; `defaults` has the same shape."""

    team: Name
    share: Share
    security: SecurityShape
    external_calls: ExternalCallsShape
    llm: LLMShape
    budgets: list[LimitShape]
    tools: ToolsShape
    monitoring: MonitoringShape


@_closed
class NamedAgentShape(AgentShape):
    """One agent."""

    name: Required[Name]


@_closed
class ResourceShape(TypedDict, total=False):
    """What a scope word opens."""

    hosts: list[Host]
    paths: list[PathText]
    tools: list[Name]


@_closed
class LimitsShape(TypedDict, total=False):
    """`limits`."""

    fleet: list[FleetLimitShape]
    fair_share: bool
    contention_wait: Seconds
    wait: Seconds


@_closed
class RouteShape(TypedDict, total=False):
    """One entry of `alerts.routes`."""

    severity: list[Literal["critical", "error", "warning", "info"]]
    agents: list[Name]
    signals: list[Name]
    to: Required[list[Name]]


@_closed
class AlertsShape(TypedDict, total=False):
    """`alerts`."""

    channels: dict[Name, dict[ChannelKind, dict[str, Any]]]
    routes: list[RouteShape]


@_closed
class KeyShape(TypedDict, total=False):
    """One entry of `keys`."""

    name: Required[Name]
    source: Required[Annotated[SourceText, Field(alias="from")]]
    hosts: list[Host]
    agents: list[Name]
    rotation_days: Days


@_closed
class DocumentShape(TypedDict, total=False):
    """A policy file: one agent under `agent_config`, or several under `agents`."""

    version: Version
    mode: Annotated[Mode, _word]
    fleet: Name
    store: StoreURL
    agent_config: NamedAgentShape
    defaults: AgentShape
    agents: list[NamedAgentShape]
    resources: dict[Name, ResourceShape]
    keys: list[KeyShape]
    limits: LimitsShape
    alerts: AlertsShape


@cache
def adapter() -> TypeAdapter[DocumentShape]:
    """The compiled shape."""
    return TypeAdapter(DocumentShape)


@cache
def json_schema() -> dict[str, Any]:
    """The JSON schema of a policy file."""
    schema = adapter().json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "agentguard policy",
        "oneOf": [{"required": ["agents"]}, {"required": ["agent_config"]}],
    }


def known_keys(place: tuple[str | int, ...]) -> list[str]:
    """The keys that may stand in a place of the file; none where any may."""
    schema = json_schema()
    node: dict[str, Any] = schema
    for step in place:
        for candidate in _resolved(schema, node):
            if isinstance(step, int) and "items" in candidate:
                node = candidate["items"]
                break
            if step in candidate.get("properties", ()):
                node = candidate["properties"][step]
                break
            if isinstance(candidate.get("additionalProperties"), dict):
                node = candidate["additionalProperties"]
                break
        else:
            return []
    return [key for candidate in _resolved(schema, node) for key in candidate.get("properties", ())]


def _resolved(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas that a node stands for: itself, what it refers to, and its alternatives."""
    if "$ref" in node:
        return _resolved(schema, schema["$defs"][node["$ref"].rpartition("/")[2]])
    branches = [branch for branch in node.get("oneOf", ()) if "required" not in branch or "properties" in branch]
    return [node] if not branches else [found for branch in branches for found in _resolved(schema, branch)]
