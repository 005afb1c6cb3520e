"""The SDKs that share a generator, and so a shape: one `request` per logical call, outside of the retry loop.

All methods of a client pass `{Sync,Async}APIClient.request`: create, parse, stream helpers, raw and streaming
responses, beta resources, `client.post`. Retries happen inside, so three attempts are one call.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agentguard.admission import CURRENT, InProgress
from agentguard.context import OWN_TRAFFIC
from agentguard.core.call import HTTPCall, Target
from agentguard.errors import Denied
from agentguard.integrations._calls import Reading, read_body, rewritten
from agentguard.integrations._seam import Hook, Integration, Seam

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentguard.admission import Admission
    from agentguard.integrations._seam import Resolve, Wrapper

    Prepare = Callable[[Any], bool]

_MAX_CAUSES = 10
_MAX_TARGETS = 1024


_targets: dict[tuple[int, str], tuple[object, Target]] = {}
"""The target of a path below a client's base URL, with that URL object: held on to, so that its id stays its own."""


def _target(client: Any, path: str) -> Target:
    base = client._base_url
    known = _targets.get((id(base), path))
    if known is None:
        if len(_targets) >= _MAX_TARGETS:
            _targets.clear()
        known = _targets[id(base), path] = base, Target.of(str(client._prepare_url(path)))
    return known[1]


def _read(client: Any, options: Any) -> Reading:
    target = _target(client, options.url)
    body = options.json_data
    if extra := getattr(options, "extra_json", None):
        body = {**(body or {}), **extra}
    if (type(body) is dict or isinstance(body, Mapping)) and (reading := read_body(target, body)):
        return reading
    return Reading(HTTPCall(options.method.upper(), target))


def _with_body(options: Any, body: dict[str, Any]) -> Any:
    changed = copy.copy(options)
    changed.json_data = body
    if getattr(changed, "extra_json", None):
        changed.extra_json = None  # it has been merged
    return changed


@functools.cache
def _library_below(client: type) -> str:
    """The library of an HTTP client, which the SDKs subclass: httpx or httpx2."""
    return next((name for base in client.__mro__ if (name := base.__module__.partition(".")[0]) in {"httpx", "httpx2"}), "")


def _denial_in(error: BaseException) -> Denied | None:
    """The denial that an SDK may have wrapped in an exception of its own."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None or isinstance(cause, Denied):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


def _reraise(error: Exception) -> None:
    denied = _denial_in(error)
    if denied is not None and denied is not error:
        raise denied from None


def _begun(
    admitted: Admission, reading: Reading, options: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments to call down with: the caller's own, or with other options when the body has to be another."""
    body = rewritten(admitted, reading)
    if body is None:
        admitted.origin = options
        return args, kwargs
    admitted.origin = changed = _with_body(options, body)
    return ((args[0], changed, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "options": changed})


def _request(prepare: Prepare | None, verify: Callable[[str], None]) -> Callable[[Resolve], Wrapper]:
    def wrap(resolve: Resolve) -> Wrapper:
        def request(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            guard = resolve()
            options = args[1] if len(args) > 1 else kwargs["options"]
            seen = CURRENT.get()  # by a second seam on this very call, which this one then passes through
            if guard is None or OWN_TRAFFIC.get() or (seen is not None and seen.origin is options):
                return wrapped(*args, **kwargs)
            traces_itself = prepare is not None and prepare(client)
            verify(_library_below(client._client.__class__))
            reading = _read(client, options)
            admitted = guard.begin(reading.call)
            admitted.sender, admitted.response_taken = client._client, True
            if traces_itself and guard.spans is not None:
                guard.spans.leave_usage(admitted.span)
            try:
                with InProgress(admitted):
                    args, kwargs = _begun(admitted, reading, options, args, kwargs)
                    response = wrapped(*args, **kwargs)
            except Exception as error:  # noted, and raised on
                _reraise(error)
                raise
            if not admitted.is_streaming:
                admitted.finish()
            return response

        return request

    return wrap


def _arequest(prepare: Prepare | None, verify: Callable[[str], None]) -> Callable[[Resolve], Wrapper]:
    def wrap(resolve: Resolve) -> Wrapper:
        async def request(wrapped: Callable[..., Any], client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            guard = resolve()
            options = args[1] if len(args) > 1 else kwargs["options"]
            seen = CURRENT.get()  # by a second seam on this very call, which this one then passes through
            if guard is None or OWN_TRAFFIC.get() or (seen is not None and seen.origin is options):
                return await wrapped(*args, **kwargs)
            traces_itself = prepare is not None and prepare(client)
            verify(_library_below(client._client.__class__))
            reading = _read(client, options)
            admitted = await guard.abegin(reading.call)
            admitted.sender, admitted.response_taken = client._client, True
            if traces_itself and guard.spans is not None:
                guard.spans.leave_usage(admitted.span)
            try:
                with InProgress(admitted):
                    args, kwargs = _begun(admitted, reading, options, args, kwargs)
                    response = await wrapped(*args, **kwargs)
            except Exception as error:  # noted, and raised on
                _reraise(error)
                raise
            if not admitted.is_streaming:
                admitted.finish()
            return response

        return request

    return wrap


def sdk_integration(library: str, prepare: Prepare | None, verify: Callable[[str], None]) -> Integration:
    """The integration of one SDK.

    Args:
        library: Its distribution and its package.
        prepare: Called with the client before each call. Says whether the SDK traces it, so that usage stands on its span.
            None: the SDK traces nothing.
        verify: Called with the name of the HTTP client's module: sees that the seams below stand.
    """

    def seam(path: str) -> Seam:
        return Seam(f"{library}._base_client", path, ("cast_to", "options"))

    return Integration(
        library,
        (
            Hook(seam("SyncAPIClient.request"), _request(prepare, verify)),
            Hook(seam("AsyncAPIClient.request"), _arequest(prepare, verify)),
        ),
    )
