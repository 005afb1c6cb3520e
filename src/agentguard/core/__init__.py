"""Deciding: values in, values out. The standard library only; no I/O, no clock, no globals."""
