"""Other instrumentations of the same call: usage stands on exactly one span, so they are looked for, never imported."""

from __future__ import annotations

import sys
from enum import Enum
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace

from agentguard.otel import semconv as names

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from agentguard.core.call import LLMCall


class Elsewhere(Enum):
    """What another instrumentation that stands around a call already reports of it."""

    NOTHING = 0
    USAGE = 1
    USAGE_AND_METRICS = 2


def reported_around(context: Context) -> Elsewhere:
    """What the span that is current in a context reports of the call that is about to begin.

    The instrumentations patch the methods of an SDK, which lie outside of our seam: where one is installed, its span is
    the current one when ours begins.
    """
    span: Any = trace.get_current_span(context)
    scope = getattr(span, "instrumentation_scope", None)  # an SDK's span has one, the API's placeholders have none
    if scope is None or scope.name == names.SCOPE or not span.is_recording():
        return Elsewhere.NOTHING
    attributes = span.attributes or {}
    is_inference = (
        attributes.get(names.OPERATION_NAME) in names.INFERENCE_OPERATIONS
        or names.OPENLLMETRY_REQUEST_TYPE in attributes
        or attributes.get(names.OPENINFERENCE_SPAN_KIND) in names.OPENINFERENCE_INFERENCE
    )
    if not is_inference:
        return Elsewhere.NOTHING
    return Elsewhere.USAGE_AND_METRICS if scope.name.startswith(names.OFFICIAL_SCOPES) else Elsewhere.USAGE


def silenced(context: Context, call: LLMCall) -> Context:
    """The context in which the official instrumentations stay silent, if their helper is loaded; the same one otherwise.

    Inside of it they write what they find into the object that it carries, instead of a span and metrics of their own.
    """
    genai = sys.modules.get(names.UTIL_GENAI)
    found = getattr(genai, "InferenceData", None)
    if found is None:
        return context
    carried = found(operation_name=call.operation, provider_name=call.provider, request_model=call.model)
    return contexts.set_value(names.INFERENCE_CONTEXT, carried, context)
