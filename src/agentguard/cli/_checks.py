"""The questions that `doctor` asks, one function each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from agentguard.cli._banner import collector, collector_endpoint
from agentguard.cli._libraries import TESTED, installed, native
from agentguard.cli._sources import find_policy_file, load_policy
from agentguard.context import is_switched_off
from agentguard.errors import AgentGuardError, PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agentguard.egress.held import Held
    from agentguard.policy import Policy

_CANARY_SECONDS = 90
_CONNECT_SECONDS = 1.5
_PORTS = {"http": 4318, "https": 4318, "grpc": 4317}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing found. `mark`: ok, fact, note, or finding, which is what the exit code tells."""

    mark: str
    text: str
    remedy: str = ""


class Place:
    """Where the doctor looks."""

    def __init__(self, policy_path: str | None, store_url: str | None, is_sending: bool, pids: tuple[int, ...] = ()) -> None:
        self.policy_path = policy_path
        self.store_url = store_url
        self.is_sending = is_sending
        self.pids = pids

    @cached_property
    def policy(self) -> Policy | None:
        """The policy; None when there is none, or it does not load."""
        with contextlib.suppress(AgentGuardError):
            path = find_policy_file(self.policy_path)
            return None if path is None else load_policy(path)
        return None

    @cached_property
    def canary(self) -> dict[str, Any] | str:
        """What became of a call through each client; or why nothing did."""
        with tempfile.TemporaryDirectory(prefix="agentguard-doctor-") as folder:
            return _send_canaries(folder)


def _send_canaries(folder: str) -> dict[str, Any] | str:
    ours = ("AGENTGUARD_", "OTEL_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(ours) and "_proxy" not in name.lower()
    }
    environment |= {"AGENTGUARD_STATE_DIR": folder, "OTEL_SDK_DISABLED": "true"}
    command = [sys.executable, "-m", "agentguard.cli._canary"]
    try:
        done = subprocess.run(  # noqa: S603 - ourselves
            command, env=environment, capture_output=True, text=True, timeout=_CANARY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_CANARY_SECONDS} s"
    try:
        found = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return last[0]
    return found if isinstance(found, dict) else "no answer"


# --------------------------------------------------------------------------------------------------------------- policy


def _policy(place: Place) -> Iterator[Line]:
    from agentguard.policy.unenforced import unenforced

    if is_switched_off():
        yield Line("finding", "AGENTGUARD_DISABLED is set: nothing is guarded", "Unset it.")
    try:
        path = find_policy_file(place.policy_path)
    except PolicyError as error:
        yield Line("finding", str(error))
        return
    if path is None:
        yield Line("finding", "no policy: calls are recorded and nothing is refused", "Write one: agentguard init")
        return
    try:
        policy = load_policy(path)
    except PolicyError as error:
        yield Line("finding", str(error), "Programs started with it raise this error.")
        return
    agents = ", ".join(agent.name for agent in policy.agents) or "none"
    yield Line("ok", f"{path}: mode {policy.mode}, agents: {agents}")
    if policy.mode == "report":
        yield Line(
            "note",
            "mode is report: refusals are recorded, and nothing is refused",
            "When `agentguard tail --denied` is quiet: enforce.",
        )
    for sentence in unenforced(policy):
        yield Line("note", sentence)


# ------------------------------------------------------------------------------------------------------------ libraries


def _libraries(_: Place) -> Iterator[Line]:
    libraries = installed()
    if tested := [f"{library.name} {library.version}" for library in libraries if library.support == "tested"]:
        yield Line("ok", f"tested versions: {', '.join(tested)}")
    for library in libraries:
        if library.support != "tested":
            oldest, newest = TESTED[library.name]
            span = newest if oldest == newest else f"{oldest} to {newest}"
            yield Line("note", f"{library.name} {library.version} is {library.support} than what was tested: {span}")
    if not libraries:
        yield Line("note", "no client library is installed in this environment")


def _seams(place: Place) -> Iterator[Line]:
    if not place.is_sending:
        yield Line("note", "not looked at: --no-canary")
        return
    if isinstance(place.canary, str):
        yield Line("finding", f"the canary process failed: {place.canary}", "Run: python -m agentguard.cli._canary")
        return
    by_library: dict[str, list[dict[str, str]]] = {}
    for seam in place.canary["seams"]:
        by_library.setdefault(seam["library"], []).append(seam)
    for library, seams in by_library.items():
        bad = [seam for seam in seams if seam["state"] not in {"hooked", "fallback"}]
        fallbacks = [seam["seam"] for seam in seams if seam["state"] == "fallback"]
        for seam in bad:
            yield Line(
                "finding", f"{library} {seam['version']}: {seam['seam']} is {seam['state']}", "Its calls are not guarded there."
            )
        if fallbacks:
            yield Line("note", f"{library}: by fallback at {', '.join(fallbacks)}")
        if not bad and not fallbacks:
            yield Line("ok", f"{library} {seams[0]['version']}: {len(seams)} {'seam' if len(seams) == 1 else 'seams'} hooked")


def _canaries(place: Place) -> Iterator[Line]:
    if not place.is_sending or isinstance(place.canary, str):
        return
    hooked = {seam["library"] for seam in place.canary["seams"]}
    for client in place.canary["clients"]:
        name = "http.client, urllib.request" if client["library"] == "python" else f"{client['library']} {client['version']}"
        if client["seen"] and client["refused"]:
            yield Line("ok", f"{name}: seen, and refused at a host that is not allowed")
        elif client["error"] is not None and not client["seen"]:
            yield Line("finding", f"{name}: its call failed: {client['error']}")
        elif client["library"] in hooked:
            what = "not seen" if not client["seen"] else "seen, and not refused at a host that is not allowed"
            yield Line("finding", f"{name}: its call was {what}", "Report it: this version has a seam for it.")
        else:
            yield Line(
                "finding", f"{name}: NOT SEEN; this version of agentguard has no seam for it", "Its calls are not guarded."
            )


# --------------------------------------------------------------------------------------------------------- installation


def _installation(_: Place) -> Iterator[Line]:
    import agentguard

    home = Path(agentguard.__file__ or "").resolve().parent
    yield Line("fact", f"imported from {home}")
    for entry in dict.fromkeys([str(Path.cwd()), *sys.path]):
        for found in (Path(entry or ".") / "agentguard" / "__init__.py", Path(entry or ".") / "agentguard.py"):
            if found.is_file() and found.resolve().parent != home:
                yield Line(
                    "finding",
                    f"another agentguard is on the path: {found}",
                    "Rename it, or remove it: a program may import it instead.",
                )
    yield from _foreign_distributions(home)


def _foreign_distributions(home: Path) -> Iterator[Line]:
    from importlib.metadata import distributions

    for distribution in distributions():
        name = (distribution.metadata["Name"] or "").lower()
        top = {file.parts[0] for file in distribution.files or () if len(file.parts) > 1}
        owns = "agentguard" in top
        if owns and name != "agentguard":
            remedy = f"pip uninstall {name}; then pip install --force-reinstall agentguard"
            yield Line("finding", f"the distribution {name!r} installs a package named agentguard too", remedy)
        elif owns and not (home / "_default.py").is_file():
            yield Line(
                "finding",
                "the installed agentguard is not this project's",
                "pip uninstall agentguard; install it from its source.",
            )


# ----------------------------------------------------------------------------------------------------- state and network


def _state(place: Place) -> Iterator[Line]:
    from agentguard.stores.state import state_dir

    try:
        folder = Path(state_dir())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, AgentGuardError) as error:
        yield Line("finding", f"the state directory cannot be written: {error}", "Set AGENTGUARD_STATE_DIR to one that can.")
        return
    size = sum(file.stat().st_size for file in (folder / "events").glob("*.jsonl"))
    yield Line("ok", f"{folder}: writable, {-(-size // 1024):,} KiB of events")
    if os.name == "posix" and stat.S_IMODE(folder.stat().st_mode) & 0o077:
        yield Line("finding", f"{folder} can be read by other users", f"chmod 700 {folder}")
    yield from _store(place)


def _store(place: Place) -> Iterator[Line]:
    from agentguard.cli._sources import open_ledger
    from agentguard.stores.state import default_store_url

    fleet = place.policy.fleet if place.policy else "default"
    url = place.store_url or (place.policy.store if place.policy else None) or default_store_url(fleet)
    shown = _without_credentials(url)
    if url == "memory://":
        yield Line("note", "the store is memory://: budgets end with the process, and each process has its own")
        return
    try:
        store = open_ledger(place.store_url, place.policy)
        try:
            rows = len(store.rows())
        finally:
            store.close()
    except AgentGuardError as error:
        yield Line("finding", f"the store cannot be used: {str(error).replace(url, shown)}")
        return
    yield Line("ok", f"store {shown}: {rows} {'counter' if rows == 1 else 'counters'}")


def _telemetry(_: Place) -> Iterator[Line]:
    endpoint = collector_endpoint()
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or endpoint is None:
        remedy = "For traces: OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318" if endpoint is None else ""
        yield Line("note", f"telemetry is {collector()}", remedy)
        return
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "http"
    port = parts.port or (443 if parts.scheme == "https" else _PORTS["grpc" if protocol == "grpc" else "http"])
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        remedy = "Start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT. Programs run on, without traces."
        yield Line("finding", f"no collector answers at {collector()}: {error.strerror or error}", remedy)
        return
    yield Line("ok", f"a collector answers at {collector()}")


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.partition('?')[0].rpartition('@')[2]}"  # redis-py takes a password as an option too


# ------------------------------------------------------------------------------------------------------ live connections


def _connections(place: Place) -> Iterator[Line]:
    from agentguard.cli._connections import guarded_processes, held_by

    pids = place.pids or guarded_processes()
    if not pids:
        yield Line("fact", "no guarded program runs now; --pid looks at any other")
    if place.policy is None:
        return
    for pid in pids:
        try:
            found = held_by(pid, place.policy, place.store_url)
        except (OSError, NotImplementedError) as error:
            if place.pids:
                yield Line("finding", f"the connections of {pid} cannot be read: {error}")
            continue
        yield Line("fact", f"process {pid} and its children: {len(found)} {'connection' if len(found) == 1 else 'connections'}")
        yield from (_held(one, place.policy) for one in found)


def _held(one: Held, policy: Policy) -> Line:
    names = f" ({', '.join(one.names)})" if one.names else ""
    what = f"{one.connection.program}[{one.connection.pid}] to {one.connection}{names}"
    if one.verdict.allowed:
        return Line("ok", f"{what}: {one.verdict.why}")
    whose = " --agent NAME" if len(policy.agents) > 1 and one.remedy.startswith("agentguard policy allow") else ""
    remedy = one.remedy + whose
    if not one.is_sure:
        return Line("note", f"{what}: its name is not known; refused, unless a wildcard means it", remedy)
    if policy.mode == "report":
        return Line("note", f"{what}: would be recorded as refused: {one.verdict.why}", remedy)
    return Line("finding", f"{what}: would be refused if it were made now: {one.verdict.why}", remedy)


def _egress_enforcement(place: Place) -> Iterator[Line]:
    from agentguard.egress.kernel.hold import outlook

    found = outlook(place.policy)
    yield Line("ok" if found.is_available else "note", found.text, found.remedy)


# -------------------------------------------------------------------------------------------------- what is not guarded


def _unguarded(_: Place) -> Iterator[Line]:
    for name, why in native():
        yield Line("note", f"{name} is installed: {why}; no seam in this process sees its calls")
    yield Line("fact", "native code, raw sockets and programs that are started: they pass every guard inside of Python")
    yield Line("fact", "functions without @agentguard.tool are not tool calls; their HTTP and LLM calls are seen all the same")
    yield Line("fact", "code that wants to get around the guard, in the same interpreter, can")


def _next(place: Place) -> Iterator[Line]:
    steps = {
        **({"init": "write a policy"} if place.policy is None else {"policy explain URL": "why a call may go or not"}),
        "run app.py": "start a program under the guard",
        "tail -f": "what happens, as it happens",
    }
    for command, does in steps.items():
        yield Line("fact", f"agentguard {command:<20}{does}")


CHECKS: tuple[tuple[str, Callable[[Place], Iterator[Line]]], ...] = (
    ("Policy", _policy),
    ("Installation", _installation),
    ("Libraries", _libraries),
    ("Seams, with every client imported", _seams),
    ("A call through each client", _canaries),
    ("State", _state),
    ("Telemetry", _telemetry),
    ("Egress enforcement", _egress_enforcement),
    ("Connections held now", _connections),
    ("Not guarded", _unguarded),
    ("Next", _next),
)
