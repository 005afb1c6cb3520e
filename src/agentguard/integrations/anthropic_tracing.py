"""anthropic's own tracing: its spans would carry the usage of a call once more, and its headers our trace to a provider.

Since 2.0 the SDK writes a span for each call, unless told otherwise, and sends `traceparent` to whom it calls.
"""

from __future__ import annotations

import logging
import os
from typing import Any

logger: logging.Logger = logging.getLogger("agentguard")

_KEEP = "ANTHROPIC_OPEN_TELEMETRY"
_DEFAULT_CONTENT = "metadata_only"


def quieten(client: Any) -> bool:
    """Switch off a client's own spans and trace headers, unless the user has chosen them. Called before each call; cheap.

    A choice is ANTHROPIC_OPEN_TELEMETRY in the environment, or an `open_telemetry=` argument that asks for what is not
    the SDK's default: content, a provider, a conversation. Clients that were made before us are treated alike.

    Returns:
        Whether the client goes on writing spans of its own: usage is then theirs to carry (`Spans.leave_usage`).
    """
    try:
        options = client._open_telemetry
        traces = options["traces"]
        if not traces["enabled"]:
            return False
        if os.environ.get(_KEEP) or _is_chosen(options, traces):
            return True
        client._set_open_telemetry({"traces": False, "propagation": False})
    except AttributeError:  # before 2.0 there is no such tracing
        return hasattr(client, "_open_telemetry")
    except Exception as fault:  # how a client is traced must not fail its call, which is guarded all the same
        logger.debug("agentguard: anthropic's own tracing stays as it is", exc_info=fault)
        return True
    return False


def _is_chosen(options: Any, traces: Any) -> bool:
    return traces["content_mode"] != _DEFAULT_CONTENT or "tracer_provider" in options or "conversation_id" in options
