"""What must keep working."""

from __future__ import annotations

from table import control


@control("controls", "module:httpx", quick=True)
def httpx_get(aim):
    import httpx
    assert httpx.get(aim.url("allowed.test")).status_code == 200
