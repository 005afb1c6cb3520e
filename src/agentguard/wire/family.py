"""An API family: one wire format of requests, responses and streams, whoever serves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Mapping

    from agentguard.wire.answer import Answer, Draft


class Request(NamedTuple):
    """What a request asks for. The fields mean what they mean in `agentguard.core.call.LLMCall`.

    Attributes:
        max_output_tokens: Per choice; None when the request carries no bound, 0 when the operation has no output.
        choices: Completions asked for, over all prompts of the request.
    """

    model: str
    stream: bool = False
    max_output_tokens: int | None = None
    choices: int = 1
    input_bytes: int = 0
    dense_bytes: int = 0
    opaque_parts: int = 0
    input_visible: bool = True


class WithUsage(Protocol):
    """Ask a stream to report its usage."""

    def __call__(self, body: Mapping[str, object], host: str = "") -> tuple[dict[str, object], bool]:
        """Return the body to send, and whether the usage event must be hidden from the caller."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """One API family. Everything it does is a pure function of what it is given.

    Attributes:
        name: `openai_chat`, `anthropic_messages`, ...
        operation: OpenTelemetry's word for what it does.
        default_provider: OpenTelemetry's provider name when the host does not tell.
        read: What a request body (and the path it is sent to) asks for.
        with_output_bound: A copy of a body that bounds its output to so many tokens per choice, as the host spells it.
        with_usage: A body whose stream reports usage, and whether that event is to be hidden from the caller.
        read_response: What the body of a response that is no stream says. Never raises.
        observe: Take one parsed stream event into a draft; returns the UTF-8 bytes of generated text it carried.
        is_usage_event: Whether a parsed stream event carries usage and nothing else.
        plain_event: Matches a whole stream event, blank line included, that carries text (group 1, still JSON-escaped)
            and nothing else worth knowing. What it matches need not be parsed.
        dull_event: Matches the beginning of an event's data when the event says nothing that `observe` wants.
    """

    name: str
    operation: str
    default_provider: str
    read: Callable[[Mapping[str, object], str], Request]
    with_output_bound: Callable[[Mapping[str, object], int, str], dict[str, object]]
    with_usage: WithUsage
    read_response: Callable[[bytes], Answer]
    observe: Callable[[Draft, Mapping[str, object]], int]
    is_usage_event: Callable[[Mapping[str, object]], bool]
    plain_event: re.Pattern[bytes] | None = None
    dull_event: re.Pattern[bytes] | None = None

    def __repr__(self) -> str:
        return f"Family({self.name!r})"


def leaves_usage_alone(body: Mapping[str, object], host: str = "") -> tuple[dict[str, object], bool]:  # noqa: ARG001
    """The `with_usage` of a family whose streams report usage unasked, or that has no streams."""
    return as_dict(body), False


def has_no_usage_event(event: Mapping[str, object]) -> bool:  # noqa: ARG001
    """The `is_usage_event` of a family that sends usage on events which mean something else too."""
    return False


def as_dict(body: Mapping[str, object]) -> dict[str, object]:
    """The body itself when it is a dict, a copy otherwise."""
    return body if isinstance(body, dict) else dict(body)
