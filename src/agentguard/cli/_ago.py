"""Durations as options take them."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Ago(click.ParamType[float]):
    """`90s`, `15m`, `2h`, `7d`: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no duration such as 90s, 15m, 2h or 7d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]
