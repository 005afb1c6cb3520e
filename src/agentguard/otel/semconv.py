"""Every name that is emitted, and no other place spells one.

`gen_ai.*` follows open-telemetry/semantic-conventions-genai, all of it in development; `http.*`, `url.*`, `server.*` and
`error.type` are stable. The strings stand here because the constants of `opentelemetry-semantic-conventions` are
deprecated for `gen_ai.*`, and a rename should be one line.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "genai main, November 2026 (spans); 1.41 and genai main (metrics); http 1.44"
"""The conventions that the names below follow."""

SCOPE: Final = "agentguard"
"""The instrumentation scope of everything that we emit."""

# --- spans: OpenTelemetry's ---------------------------------------------------------------------------------------------

AGENT_NAME: Final = "gen_ai.agent.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
EMBEDDINGS_DIMENSION_COUNT: Final = "gen_ai.embeddings.dimension.count"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OPERATION_NAME: Final = "gen_ai.operation.name"
OUTPUT_TYPE: Final = "gen_ai.output.type"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_CHOICE_COUNT: Final = "gen_ai.request.choice.count"
REQUEST_ENCODING_FORMATS: Final = "gen_ai.request.encoding_formats"
REQUEST_FREQUENCY_PENALTY: Final = "gen_ai.request.frequency_penalty"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_PRESENCE_PENALTY: Final = "gen_ai.request.presence_penalty"
REQUEST_PREVIOUS_RESPONSE_ID: Final = "gen_ai.request.previous_response.id"
REQUEST_REASONING_LEVEL: Final = "gen_ai.request.reasoning.level"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_STOP_SEQUENCES: Final = "gen_ai.request.stop_sequences"
REQUEST_STREAM: Final = "gen_ai.request.stream"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_K: Final = "gen_ai.request.top_k"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOKEN_MODALITY: Final = "gen_ai.token.modality"
TOKEN_TYPE: Final = "gen_ai.token.type"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
USAGE_CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE: Final = "gen_ai.usage.cache_write.input_tokens"
USAGE_INPUT: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT: Final = "gen_ai.usage.output_tokens"
USAGE_REASONING: Final = "gen_ai.usage.reasoning.output_tokens"

OPENAI_REQUEST_SERVICE_TIER: Final = "openai.request.service_tier"
OPENAI_RESPONSE_SERVICE_TIER: Final = "openai.response.service_tier"
OPENAI_RESPONSE_SYSTEM_FINGERPRINT: Final = "openai.response.system_fingerprint"

ERROR_TYPE: Final = "error.type"
HTTP_METHOD: Final = "http.request.method"
HTTP_METHOD_ORIGINAL: Final = "http.request.method_original"
HTTP_RESEND_COUNT: Final = "http.request.resend_count"
HTTP_STATUS_CODE: Final = "http.response.status_code"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
SERVICE_NAME: Final = "service.name"
URL_FULL: Final = "url.full"
URL_SCHEME: Final = "url.scheme"

OTHER: Final = "_OTHER"
"""OpenTelemetry's word for an error, or a method, that has no name of its own."""

INVOKE_AGENT: Final = "invoke_agent"
EXECUTE_TOOL: Final = "execute_tool"
EMBEDDINGS: Final = "embeddings"
FUNCTION: Final = "function"
UNKNOWN_MODALITY: Final = "unknown"

# --- spans: ours --------------------------------------------------------------------------------------------------------

COST_USD: Final = "agentguard.cost.usd"
DECISION: Final = "agentguard.decision"
ESTIMATE_BREACHED: Final = "agentguard.estimate.breached"
LIMIT: Final = "agentguard.limit"
LIMIT_HELD: Final = "agentguard.limit.held"
LIMIT_OVER: Final = "agentguard.limit.over"
LIMIT_REQUESTED: Final = "agentguard.limit.requested"
LIMIT_RESETS_AT: Final = "agentguard.limit.resets_at"
LIMIT_RETRY_AFTER: Final = "agentguard.limit.retry_after"
LIMIT_SPENT: Final = "agentguard.limit.spent"
LIMIT_SUBJECT: Final = "agentguard.limit.subject"
LIMIT_UNIT: Final = "agentguard.limit.unit"
LIMIT_WAITED: Final = "agentguard.limit.waited"
LIMIT_WINDOW: Final = "agentguard.limit.window"
OUTPUT_BOUND_WRITTEN: Final = "agentguard.output_bound.written"
POLICY_ID: Final = "agentguard.policy.id"
REASON: Final = "agentguard.reason"
RULE: Final = "agentguard.rule"
RULE_PLACE: Final = "agentguard.rule.place"
STREAM_OUTCOME: Final = "agentguard.stream.outcome"
TOOLS_REFUSED: Final = "agentguard.tools.refused"
USAGE_ESTIMATED: Final = "agentguard.usage.estimated"

ALLOW: Final = "allow"
DENY: Final = "deny"
WOULD_DENY: Final = "would_deny"

DENIAL: Final = "agentguard."
"""Stands before the name of one of our exceptions in `error.type`."""

# --- events -------------------------------------------------------------------------------------------------------------

POLICY_DECISION: Final = "agentguard.policy.decision"
INFERENCE_DETAILS: Final = "gen_ai.client.inference.operation.details"

# --- metrics ------------------------------------------------------------------------------------------------------------

# What the official packages emit today: the names of 1.41.
OPERATION_DURATION: Final = "gen_ai.client.operation.duration"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"

# The specification's main branch.
INFERENCE_DURATION: Final = "gen_ai.client.inference.duration"
INFERENCE_TIME_TO_FIRST_CHUNK: Final = "gen_ai.client.inference.time_to_first_chunk"
INFERENCE_USAGE_CACHE_READ: Final = "gen_ai.client.inference.usage.cache_read.input_tokens"
INFERENCE_USAGE_CACHE_WRITE: Final = "gen_ai.client.inference.usage.cache_write.input_tokens"
INFERENCE_USAGE_INPUT: Final = "gen_ai.client.inference.usage.input_tokens"
INFERENCE_USAGE_OUTPUT: Final = "gen_ai.client.inference.usage.output_tokens"
INFERENCE_USAGE_REASONING: Final = "gen_ai.client.inference.usage.reasoning.output_tokens"
INFERENCE_INPUT_TOKENS: Final = "gen_ai.client.inference.operation.input_tokens"
INFERENCE_OUTPUT_TOKENS: Final = "gen_ai.client.inference.operation.output_tokens"
EMBEDDINGS_DURATION: Final = "gen_ai.client.embeddings.duration"
EMBEDDINGS_INPUT_TOKENS: Final = "gen_ai.client.embeddings.operation.input_tokens"

EXECUTE_TOOL_DURATION: Final = "gen_ai.execute_tool.duration"
INVOKE_AGENT_DURATION: Final = "gen_ai.invoke_agent.duration"
HTTP_REQUEST_DURATION: Final = "http.client.request.duration"

POLICY_DECISIONS: Final = "agentguard.policy.decisions"
COST: Final = "agentguard.cost"
BUDGET_REMAINING: Final = "agentguard.budget.remaining"
RATELIMIT_WAIT: Final = "agentguard.ratelimit.wait"
EVENTS_DROPPED: Final = "agentguard.events.dropped"

CLIENT_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
WAIT_SECONDS: Final = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 600)
AGENT_SECONDS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)
HTTP_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
TOKENS: Final = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
"""Bucket boundaries, as the conventions give them: seconds, and tokens. Those of waiting are ours."""

# --- other instrumentations ---------------------------------------------------------------------------------------------

UTIL_GENAI: Final = "opentelemetry.util.genai.invocation"
"""The module of the official helper. It is looked for, never imported."""

INFERENCE_CONTEXT: Final = "opentelemetry.genai.client.inference.context"
"""The official instrumentations stay silent inside a context that carries this key."""

OPENLLMETRY_REQUEST_TYPE: Final = "llm.request.type"
OPENINFERENCE_SPAN_KIND: Final = "openinference.span.kind"
OPENINFERENCE_INFERENCE: Final = frozenset({"LLM", "EMBEDDING"})
OFFICIAL_SCOPES: Final = "opentelemetry.instrumentation."
"""Scopes of instrumentations that record `gen_ai.client.*` metrics themselves."""

INFERENCE_OPERATIONS: Final = frozenset({"chat", "text_completion", "generate_content", "embeddings"})
HTTP_METHODS: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
