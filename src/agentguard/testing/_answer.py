"""From a request and a scripted reply to what the model says, in whole and in pieces; no wire format yet."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from agentguard.testing._schema import instance_of
from agentguard.testing.reply import DEFAULT_OUTPUT_TOKENS
from agentguard.testing.tokens import count_tokens, cut, input_tokens, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agentguard.testing.records import RecordedRequest
    from agentguard.testing.reply import Reply, ToolCall

Json = dict[str, Any]

_ARGUMENT_PIECE = 16


class BadRequestError(Exception):
    """The request lacks something the API requires; the message is the API's own."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What an error says; None leaves it to the API's own words."""

    message: str | None = None
    code: str | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request asks for, whichever API it came by."""

    body: Json
    model: str
    max_tokens: int | None = None
    choices: int = 1
    """Answers to send."""
    generations: int = 1
    """Answers to charge for (`best_of`)."""
    stream: bool = False
    include_usage: bool = True
    schema: Json | None = None
    """What the answer's text must be JSON of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A tool call with everything made up that the script left open."""

    name: str
    arguments: str
    id: str

    @property
    def tokens(self) -> int:
        return count_tokens(self.name) + count_tokens(self.arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an answer costs. Input includes what was read from or written to a cache; output includes reasoning."""

    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int
    reasoning_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model says. Each of the request's choices says the same."""

    text: str
    calls: tuple[Call, ...]
    is_cut: bool
    """The request's own bound ended it."""
    usage: Usage
    shows_usage: bool
    pieces: int | None


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Some text of a choice."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The name of a tool call."""

    index: int
    call: Call


@dataclass(frozen=True, slots=True)
class CallPiece:
    """Some of a tool call's arguments."""

    index: int
    arguments: str


Piece = TextPiece | CallStart | CallPiece


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A streamed answer, ready to be written: what precedes the first token, one entry for each piece, what follows."""

    opening: bytes
    chunks: Iterator[bytes]
    closing: bytes


def answer_to(ask: Ask, reply: Reply, request: RecordedRequest) -> Answer:
    """What the model says to a request, with the request's own bound applied."""
    seed = zlib.crc32(request.body)
    calls = tuple(_call(call, f"{seed:08x}{index:016x}") for index, call in enumerate(reply.tool_calls))
    call_tokens = sum(call.tokens for call in calls)
    text = reply.text
    if text is None and ask.schema is not None and reply.output_tokens is None and not calls:
        text = json.dumps(instance_of(ask.schema), ensure_ascii=False)
    if text is None:
        text = text_of(_unscripted_tokens(reply, call_tokens), seed=seed)
    wanted = reply.output_tokens
    if wanted is None:
        wanted = count_tokens(text) + call_tokens + reply.reasoning_tokens

    granted = wanted
    if ask.max_tokens is not None and not reply.ignore_max_tokens:
        granted = min(wanted, ask.max_tokens)
    reasoning = min(reply.reasoning_tokens, granted)
    is_cut = granted < wanted
    if is_cut:
        text = cut(text, granted - reasoning)
        calls = ()
    return Answer(
        text=text,
        calls=calls,
        is_cut=is_cut,
        usage=_usage(ask, reply, granted, reasoning),
        shows_usage=reply.usage,
        pieces=reply.chunks,
    )


def _call(call: ToolCall, made_up_id: str) -> Call:
    return Call(name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False), id=call.id or made_up_id)


def _unscripted_tokens(reply: Reply, call_tokens: int) -> int:
    if reply.output_tokens is not None:
        return reply.output_tokens - call_tokens - reply.reasoning_tokens
    return 0 if reply.tool_calls else DEFAULT_OUTPUT_TOKENS


def _usage(ask: Ask, reply: Reply, granted: int, reasoning: int) -> Usage:
    entered = input_tokens(ask.body) if reply.input_tokens is None else reply.input_tokens
    return Usage(
        input_tokens=entered,
        cached_tokens=reply.cached_tokens,
        cache_write_tokens=reply.cache_write_tokens,
        output_tokens=granted * ask.generations,
        reasoning_tokens=reasoning * ask.generations,
    )


def pieces_of(answer: Answer) -> list[Piece]:
    """One choice of an answer, cut for streaming: the text token by token unless scripted, then the tool calls."""
    pieces: list[Piece] = [TextPiece(text) for text in _text_pieces(answer)]
    for index, call in enumerate(answer.calls):
        pieces.append(CallStart(index, call))
        pieces.extend(
            CallPiece(index, call.arguments[start : start + _ARGUMENT_PIECE])
            for start in range(0, len(call.arguments), _ARGUMENT_PIECE)
        )
    return pieces


def _text_pieces(answer: Answer) -> list[str]:
    text = answer.text
    if not text:
        return []
    count = min(max(answer.pieces or count_tokens(text), 1), len(text))
    bounds = [len(text) * index // count for index in range(count + 1)]
    return [text[start:end] for start, end in pairwise(bounds)]


def shares_of(answer: Answer, ask: Ask) -> list[int]:
    """How many of the answer's output tokens leave with each piece of all its choices; they sum up exactly."""
    weights = [_weight(piece) for piece in pieces_of(answer)] * ask.choices
    whole, total = sum(weights), answer.usage.output_tokens
    shares, passed, shared = [], 0, 0
    for weight in weights:
        passed += weight
        reached = total * passed // whole if whole else total
        shares.append(reached - shared)
        shared = reached
    return shares


def _weight(piece: Piece) -> int:
    if isinstance(piece, TextPiece):
        return len(piece.text)
    if isinstance(piece, CallStart):
        return len(piece.call.name)
    return len(piece.arguments)
