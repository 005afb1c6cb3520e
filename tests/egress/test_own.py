"""Where agentguard itself connects to is part of every boundary."""

from __future__ import annotations

import pytest

from agentguard.egress.boundary import Endpoint
from agentguard.egress.own import own_endpoints


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, (Endpoint("collector", 4318),)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:secret@collector/v1"}, (Endpoint("collector", 4318),)),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            (Endpoint("collector", 4317),),
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            (Endpoint("collector", 4317),),
        ),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://traces:9/v1/traces"}, (Endpoint("traces", 9),)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, (Endpoint("localhost", 4318),)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, ()),
    ],
)
def test_the_collector_is_where_the_variables_say(variables, expected):
    assert own_endpoints(None, variables) == expected


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("memory://", ()),
        ("sqlite:////var/lib/counters.sqlite", ()),
        ("redis://:secret@redis:7000/0", (Endpoint("redis", 7000),)),
        ("rediss://redis", (Endpoint("redis", 6379),)),
        ("redis+sentinel://one,two:9/main", (Endpoint("one", 26379), Endpoint("two", 9))),
    ],
)
def test_a_store_is_reached_where_its_url_says(store, expected):
    assert own_endpoints(store, {}) == expected
