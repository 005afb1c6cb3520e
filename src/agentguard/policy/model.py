"""The policy as data: frozen values, checked when they are built, whether by hand or from a file.

Every part that can refuse a call carries a `Rule`, so that a refusal can name the line that decided.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from agentguard.policy.hosts import HostPattern

NANOS_PER_USD = 1_000_000_000
"""Money lives as integer nano-USD: a token of the cheapest model costs tens of them, 2**53 are nine million dollars."""

MILLION = 1_000_000
"""The whole of which a guarantee is a part."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Where a clause of the policy stands: its spelling, and the file and line when it came from a file."""

    name: str
    path: str = ""
    line: int = 0

    @property
    def place(self) -> str:
        """`agents.yaml:12`, or nothing for a policy that was built by hand."""
        return f"{self.path}:{self.line}" if self.line else self.path

    def __str__(self) -> str:
        return f"{self.name} ({self.place})" if self.place else self.name


class Mode(StrEnum):
    """What a refusal does: stop the call, or be recorded only."""

    ENFORCE = "enforce"
    REPORT = "report"


class Unit(StrEnum):
    """What a limit counts."""

    TOKENS = "tokens"
    USD = "usd"
    CALLS = "calls"
    CONCURRENT_CALLS = "concurrent_calls"


class Per(StrEnum):
    """What a limit counts against: each subject of this kind has a counter of its own."""

    CALL = "call"
    INTERACTION = "interaction"
    SESSION = "session"
    USER = "user"
    AGENT = "agent"
    MODEL = "model"
    KEY = "key"
    TEAM = "team"
    FLEET = "fleet"


class Over(StrEnum):
    """Which calls a limit counts."""

    LLM = "llm"
    EXTERNAL = "external"
    ALL = "all"


class OnStoreDown(StrEnum):
    """What a limit does when the store gives no answer."""

    CLOSED = "closed"
    LOCAL = "local"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Window:
    """The period of a limit.

    Attributes:
        every: `minute`, `hour`, `day` or `month` follow the clock in UTC; None with no length: the whole life.
        seconds: The length of a rolling window; 0 for the others.
    """

    every: str | None = None
    seconds: float = 0.0

    LIFE: ClassVar[Window]

    @property
    def is_rolling(self) -> bool:
        """Whether the window ends now and slides, instead of following the clock."""
        return self.seconds > 0

    def __str__(self) -> str:
        return f"{self.seconds:.12g}s" if self.is_rolling else (self.every or "life")


Window.LIFE = Window()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on what a subject may use in a window.

    Attributes:
        amount: In the unit: tokens, nano-USD, calls, or calls at once. At least 1.
        unit: What is counted.
        per: The kind of subject that each have a counter.
        window: The period; a rate is a number of calls in a rolling window.
        over: Which calls count.
        warn_at: Percentages of the amount at which a soft step is told, ascending.
        on_store_down: What happens while the store gives no answer.
        text: The limit as it was written (`$5.00`, `1000_requests_per_hour`).
        rule: Where it stands.
    """

    amount: int
    unit: Unit
    per: Per = Per.AGENT
    window: Window = Window.LIFE
    over: Over = Over.ALL
    warn_at: tuple[int, ...] = ()
    on_store_down: OnStoreDown = OnStoreDown.CLOSED
    text: str = field(default="", compare=False)
    rule: Rule = field(default=Rule("budgets"), compare=False)

    def __post_init__(self) -> None:
        if self.amount < 1:
            msg = f"a limit needs an amount of at least 1, found {self.amount}"
            raise ValueError(msg)

    @property
    def is_rate(self) -> bool:
        """Whether a refusal is `RateLimited` rather than `BudgetExceeded`."""
        return self.unit is Unit.CONCURRENT_CALLS or (self.unit is Unit.CALLS and self.window.is_rolling)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalCalls:
    """Which hosts may be reached.

    Attributes:
        allowed_domains: Hosts, `*.host`, `host:port`, addresses and networks. None: the list was not written.
        blocked_domains: The same, to refuse. The most specific entry of both lists wins, a refusal wins ties.
        enforcement: `in_process`, `kernel` or `auto`.
        allow_private: Whether an exact name may resolve to private address space.
        allow_metadata: Whether cloud metadata addresses may be reached at all.
        allow_udp: Whether datagrams may be sent.
        unix_sockets: Path prefixes of Unix sockets that may be connected to, beside the program's own; `@name`: an abstract one.
        rule: Where the list of what is allowed stands, or the whole when it is not written.
        blocked_rule: Where the list of what is blocked stands; None: as `rule`.
    """

    allowed_domains: tuple[HostPattern, ...] | None = None
    blocked_domains: tuple[HostPattern, ...] | None = None
    enforcement: str = "in_process"
    allow_private: bool = False
    allow_metadata: bool = False
    allow_udp: bool = False
    unix_sockets: tuple[str, ...] = ()
    rule: Rule = field(default=Rule("external_calls"), compare=False)
    blocked_rule: Rule | None = field(default=None, compare=False)

    @property
    def is_unwritten(self) -> bool:
        """Neither list was written: hosts are observed, not refused."""
        return self.allowed_domains is None and self.blocked_domains is None

    def rule_of(self, name: str) -> Rule:
        """A rule by the name that a verdict gives (`external_calls.blocked_domains`), with the line to look at."""
        stands = self.blocked_rule if self.blocked_rule is not None and name == self.blocked_rule.name else self.rule
        return Rule(name, stands.path, stands.line)


class Bound(StrEnum):
    """How the tokens of a call are bounded before it is made: by a calibrated high estimate, or by a true bound."""

    CALIBRATED = "calibrated"
    STRICT = "strict"


class Unbounded(StrEnum):
    """What to do with a request that carries no bound on its output: write one, refuse it, or assume one."""

    WRITE = "write"
    DENY = "deny"
    ASSUME = "assume"


class Ambiguous(StrEnum):
    """What to charge for a call that may or may not have been served: the estimate, its input part, or nothing."""

    ESTIMATE = "estimate"
    INPUT = "input"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model costs, in nano-USD per million tokens."""

    input: int
    output: int
    cache_read: int | None = None
    cache_write: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LLM:
    """Which models may be used, and how calls to them are bounded and priced.

    Attributes:
        providers: Their hosts become reachable (`openai`, `anthropic`, ...).
        models: Patterns with `*`; None: any model.
        max_output_tokens: The most that is written into a request that carries no bound.
        bound: How input is bounded.
        unbounded_output: What to do when the request carries no output bound.
        include_usage: Whether chat streams are asked for their usage; the extra chunk is hidden from who did not ask.
        ambiguous: What an attempt costs that got no answer.
        prices: Own prices by model pattern; they outrank the price list.
        unknown_price: What a model costs that nobody prices; None: it is refused where money is limited.
    """

    providers: tuple[str, ...] = ()
    models: tuple[str, ...] | None = None
    max_output_tokens: int = 16384
    bound: Bound = Bound.CALIBRATED
    unbounded_output: Unbounded = Unbounded.WRITE
    include_usage: bool = True
    ambiguous: Ambiguous = Ambiguous.ESTIMATE
    prices: Mapping[str, Price] = field(default_factory=dict)
    unknown_price: Price | None = None
    rule: Rule = field(default=Rule("llm"), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Which tools an agent may use. `allowed` None: any; `proposed`: whether a forbidden proposal is refused or told."""

    allowed: tuple[str, ...] | None = None
    proposed: str = "allow"
    rule: Rule = field(default=Rule("tools"), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKeys:
    """What holds for the keys that an agent uses. `scope` None: no scope was written, so none is asked for."""

    rotation_days: int | None = None
    scope: tuple[str, ...] | None = None
    rate_limit: Limit | None = None
    rule: Rule = field(default=Rule("security.api_keys"), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitoring:
    """What is watched. `typical` maps a signal to its usual range; `alert_at` a signal to a fixed threshold."""

    alert_on_anomaly: bool = False
    track_token_usage: bool = True
    false_alerts_per_week: float = 1.0
    typical: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    alert_at: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """An agent's part of the fleet's limits (`limits.fair_share`): nobody else takes it, and the agent takes no more.

    Attributes:
        guarantee: So many millionths of each limit, whoever joins.
        weight: How much of the rest, which is guaranteed to nobody, against the weights of all.
    """

    guarantee: int = 0
    weight: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.guarantee <= MILLION or self.weight < 0 or not (self.guarantee or self.weight):
            msg = f"a share is a guarantee, a weight or both, found {self.guarantee} millionths and a weight of {self.weight}"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPolicy:
    """What one agent may do."""

    name: str
    team: str | None = None
    share: Share = Share()
    api_keys: ApiKeys = ApiKeys()
    external_calls: ExternalCalls = ExternalCalls()
    llm: LLM | None = None
    budgets: tuple[Limit, ...] = ()
    tools: Tools = Tools()
    monitoring: Monitoring = Monitoring()
    rule: Rule = field(default=Rule("agents"), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What a scope word opens: hosts (with paths, when given) and tools. Without the scope they are refused."""

    name: str
    hosts: tuple[HostPattern, ...] = ()
    paths: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    rule: Rule = field(default=Rule("resources"), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """A key and where its secret stays: `env:NAME`, `file:PATH`, `keyring:NAME`, ..."""

    name: str
    source: str
    hosts: tuple[HostPattern, ...] = ()
    agents: tuple[str, ...] = ()
    rotation_days: int | None = None
    rule: Rule = field(default=Rule("keys"), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Fleet-wide limits, and how long a call waits for room.

    Attributes:
        fleet: What all agents share.
        fair_share: Whether of every limit `per: fleet` each agent has its share for itself, and takes no more.
        contention_wait_seconds: How long it waits for amounts that others hold.
        wait_seconds: How long it waits for a window to be over; 0: what is spent refuses at once.
    """

    fleet: tuple[Limit, ...] = ()
    fair_share: bool = False
    contention_wait_seconds: float = 30.0
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """Where alerts go: channels by name (a kind and its settings), and routes from severities to channels."""

    channels: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    routes: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything that is enforced, as one immutable value.

    Attributes:
        version: The policy language; 1.
        mode: `enforce`, or `report`: everything is decided and recorded, nothing is refused.
        fleet: Names the shared counters.
        store: Where the counters live, as a URL; None: SQLite in the state directory.
        agents: What each agent may do. Names are unique.
        resources: What scope words open.
        keys: Keys and their sources.
        limits: Fleet-wide limits.
        alerts: Where alerts go.
        path: The file it came from; empty for a policy built by hand.
    """

    version: int = 1
    mode: Mode = Mode.ENFORCE
    fleet: str = "default"
    store: str | None = None
    agents: tuple[AgentPolicy, ...] = ()
    resources: tuple[Resource, ...] = ()
    keys: tuple[KeySource, ...] = ()
    limits: Limits = Limits()
    alerts: Alerts = Alerts()
    path: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        guaranteed = sum(agent.share.guarantee for agent in self.agents)
        if guaranteed > MILLION:
            msg = f"the guarantees of all agents together are at most a million millionths, found {guaranteed}"
            raise ValueError(msg)

    # Bound in `agentguard.policy`: they import pydantic and yaml, which the model must not know.
    from_yaml: ClassVar[Callable[[str | bytes | os.PathLike[str]], Policy]]
    from_toml: ClassVar[Callable[[str | bytes | os.PathLike[str]], Policy]]
    from_mapping: ClassVar[Callable[[Mapping[str, Any]], Policy]]
    json_schema: ClassVar[Callable[[], dict[str, Any]]]

    def agent(self, name: str) -> AgentPolicy | None:
        """The policy of an agent; None when it is not named."""
        return next((agent for agent in self.agents if agent.name == name), None)
