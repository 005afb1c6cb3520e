"""multiprocessing: starts interpreters by a function in C that raises no audit event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agentguard.integrations._seam import Hook, Integration, Seam

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.integrations._seam import Resolve, Wrapper


def integration(started: Callable[[object], None]) -> Integration:
    """The seam; `started` is told of each program. The resource tracker, which connects to nothing, is none."""

    def wrap(resolve: Resolve) -> Wrapper:
        def spawnv_passfds(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if resolve() is not None and not any("resource_tracker" in str(arg) for arg in args[1]):
                started(args[0])
            return wrapped(*args, **kwargs)

        return spawnv_passfds

    return Integration("python", (Hook(Seam("multiprocessing.util", "spawnv_passfds", ("path", "args", "passfds")), wrap),))
