"""Seams: the places where we stand on the call path, as data; installed, verified, and removed by identity."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import logging
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import wrapt

from agentguard.errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from agentguard.guard import Guard

    Resolve = Callable[[], Guard | None]
    Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
    Report = Callable[[str, str, str], None]

logger = logging.getLogger("agentguard")


@dataclass(frozen=True, slots=True)
class Seam:
    """A place on a library's call path.

    Attributes:
        module: The module that holds it; when it is imported, the seam is installed.
        path: The attribute path within: `Client.send`.
        parameters: Names that the function must take, after `self`: the shape that we rely on.
        fallback: A seam that will do when this one is gone.
    """

    module: str
    path: str
    parameters: tuple[str, ...] = ()
    fallback: Seam | None = None

    def __str__(self) -> str:
        return f"{self.module}:{self.path}"


class Hook(NamedTuple):
    """A seam, and what to put there: `wrap(resolve)` makes a wrapt wrapper."""

    seam: Seam
    wrap: Callable[[Resolve], Wrapper]
    fallback_wrap: Callable[[Resolve], Wrapper] | None = None


class Integration(NamedTuple):
    """One library: the distribution whose version is reported, and its hooks."""

    library: str
    hooks: tuple[Hook, ...]


class SeamStatus(NamedTuple):
    """How a seam stands.

    Attributes:
        library: The distribution.
        version: Its version; empty when it is not installed.
        seam: `module:path`.
        state: `hooked`, `fallback`, `missing`, `lost`, `removed`, or `waiting` for the module to be imported.
    """

    library: str
    version: str
    seam: str
    state: str


class InstalledSeam:
    """One hook in its place. Inert once removed, even where a foreign wrapper keeps it on the call path.

    Attributes:
        namespace, name: Where it stands: the names of a class or module, and its own; empty while it stands nowhere.
        handle: The wrapper in place; None while there is none.
    """

    def __init__(self, library: str, hook: Hook, resolve: Resolve, report: Report) -> None:
        self.library = library
        self.seam = hook.seam
        self.state = "waiting"
        self._hook = hook
        self._report = report
        self._resolve = resolve
        self._is_active = True
        self._owner: Any = None
        self.name: str = ""
        self.namespace: Mapping[str, Any] = {}
        self.handle: Any = None
        self._lock = threading.Lock()

    def install(self, module: ModuleType) -> None:
        """Put the wrapper on the call path.

        Raises:
            SeamError: The module has neither the seam nor its fallback, in the shape that we rely on.
        """
        with self._lock:
            if not self._is_active or self.handle is not None:
                return
            seam, wrap = self.seam, self._hook.wrap
            if not _fits(module, seam):
                if seam.fallback is None or self._hook.fallback_wrap is None or not _fits(module, seam.fallback):
                    self.state = "missing"
                    self._report(self.library, str(seam), "missing")
                    what = f"{self.library} {version_of(self.library)} has no {seam} in the shape that agentguard relies on"
                    msg = f"{what}; its calls would not be guarded"
                    raise SeamError(msg)
                seam, wrap = seam.fallback, self._hook.fallback_wrap
                self.state = "fallback"
            else:
                self.state = "hooked"
            self._place(module, seam, wrap)
        self._report(self.library, str(seam), "installed" if self.state == "hooked" else self.state)

    def _place(self, module: ModuleType, seam: Seam, wrap: Callable[[Resolve], Wrapper]) -> None:
        def resolve() -> Guard | None:
            return self._resolve() if self._is_active else None

        self._owner, self.name, _ = wrapt.resolve_path(module, seam.path)
        self.namespace = vars(self._owner)
        self.handle = wrapt.wrap_function_wrapper(module, seam.path, wrap(resolve))

    @property
    def is_intact(self) -> bool:
        """Whether calls still pass here. Cheap when we are outermost, which we nearly always are."""
        if self.handle is None:
            return False
        current = self.namespace.get(self.name)
        return current is self.handle or wrapt.is_wrapped_by(current, self.handle)

    def repair(self) -> None:
        """Put the wrapper back after somebody has taken it away.

        Raises:
            SeamError: It cannot be put back.
        """
        with self._lock:
            if not self._is_active or self.is_intact:
                return
            self.handle = None
        self._report(self.library, str(self.seam), "lost")
        self.install(sys.modules[self.seam.module])

    def remove(self) -> None:
        """Take our own wrapper off the call path, wherever in the chain it stands; what cannot be removed goes inert."""
        with self._lock:
            self._is_active = False
            handle, self.handle, self.namespace = self.handle, None, {}
            if handle is None:
                return
            # Below a foreign closure it stays on the path, and passes every call through.
            with contextlib.suppress(wrapt.WrapperNotOutermostError, AttributeError):
                wrapt.unwrap_object(self._owner, self.name, handle, missing_ok=True)
        self.state = "removed"
        self._report(self.library, str(self.seam), "removed")

    def status(self) -> SeamStatus:
        """How it stands now."""
        state = "lost" if self.state in {"hooked", "fallback"} and not self.is_intact else self.state
        return SeamStatus(self.library, version_of(self.library), str(self.seam), state)


class Seams:
    """All seams of one `instrument()`.

    Args:
        integrations: The libraries.
        resolve: The guard in scope.
        report: Told of every change: library, seam, state.
        forgives: Whether a seam that cannot be installed is logged, and does not fail the import of its library.
    """

    def __init__(
        self, integrations: Sequence[Integration], resolve: Resolve, report: Report, forgives: Callable[[], bool] = lambda: False
    ) -> None:
        self._forgives = forgives
        self._all = [InstalledSeam(one.library, hook, resolve, report) for one in integrations for hook in one.hooks]
        self._by_module: dict[str, list[InstalledSeam]] = {}
        for installed in self._all:
            self._by_module.setdefault(installed.seam.module, []).append(installed)

    def install(self) -> None:
        """Install what is imported already, and the rest when it is. Imports nothing.

        Raises:
            SeamError: A seam of an imported library cannot be installed. All others are.
        """
        missing: list[SeamError] = []
        for module, here in self._by_module.items():
            try:
                wrapt.register_post_import_hook(functools.partial(self._install_all, here), module)
            except SeamError as error:
                missing.append(error)
        if missing:
            raise missing[0]

    def _install_all(self, here: Sequence[InstalledSeam], loaded: ModuleType) -> None:
        missing: list[SeamError] = []
        for installed in here:
            try:
                installed.install(loaded)
            except SeamError as error:
                missing.append(error)
        if missing and not self._forgives():
            raise missing[0]
        for fault in missing:
            logger.error("agentguard: a library is not observed: %s", fault)

    def verify(self, module: str) -> None:
        """See that the seams of a module are on the call path, and put back what was taken away.

        Raises:
            SeamError: One cannot be put back, and that is not forgiven: as long as it lasts, no call goes.
        """
        for installed in self._by_module.get(module, ()):
            # Asked before every call, of every seam below: nearly always the wrapper in place is ours, and outermost.
            if installed.namespace.get(installed.name) is not installed.handle and not installed.is_intact:
                self._put_back(installed)

    def _put_back(self, taken_away: InstalledSeam) -> None:
        try:
            taken_away.repair()
        except SeamError as fault:
            if not self._forgives():
                raise
            taken_away.namespace = {}  # not asked again
            logger.error("agentguard: a library is no longer observed: %s", fault)  # noqa: TRY400 - the message says it all

    def remove(self) -> None:
        """Remove every seam, the last installed first."""
        for installed in reversed(self._all):
            installed.remove()

    def status(self) -> list[SeamStatus]:
        """How every seam of an installed library stands."""
        return [status for installed in self._all if (status := installed.status()).version]


def version_of(library: str) -> str:
    """The installed version of a distribution; empty when it is not installed. The standard library has Python's."""
    if library == "python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _fits(module: ModuleType, seam: Seam) -> bool:
    found: Any = module
    for name in seam.path.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        return False
    taken = inspect.signature(found).parameters
    return all(name in taken for name in seam.parameters)
