"""Spans and metrics over OpenTelemetry: observers of a guard's events, and the set-up of providers and exporters."""
