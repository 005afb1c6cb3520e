"""Runs attempts and controls under a mode, and judges them by what the servers received."""

from __future__ import annotations

import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import needs
import stage
import world
from servers import Servers
from table import ATTEMPTS, CONTROLS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from servers import Contact
    from table import Attempt

HERE = Path(__file__).resolve().parent
MODULES = (*(f"attempts.{path.stem}" for path in sorted((HERE / "attempts").glob("[a-z]*.py"))), "controls")

MODES = {
    "none": "no guard",
    "in_process": "`instrument()`",
    "kernel": "`agentguard run --egress kernel`, the kernel's part alone",
    "layers": "`agentguard run --egress kernel`",
    "inside": '`instrument(egress="kernel")`',
    "docker": "`agentguard run --egress kernel` under Docker's default profile",
}
START_SECONDS = 60.0
SETTLE_SECONDS = 0.1
WITH_LIBRARIES = ("controls", "controls with udp", "clients")
"""They import whole libraries, which takes a busy machine many seconds."""
ECHO_SECONDS = 5.0
SECOND_GOES = 2
"""How often an attempt that arrived nowhere is tried again where there is no guard. Where there is one, each has one go."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one attempt or control."""

    name: str
    group: str
    outcome: str
    said: str = ""
    seen: tuple[str, ...] = ()
    seconds: float = 0.0


def load() -> None:
    """Fill the tables."""
    for module in MODULES:
        importlib.import_module(module)


class Battery:
    """One mode, played in this namespace."""

    def __init__(self, mode: str, uid: int, folder: Path, servers: Servers) -> None:
        self.mode, self.uid, self.folder, self.servers = mode, uid, folder, servers
        self._numbers = count()
        self.complaints: list[str] = []
        self._refusal = ""

    def run(self, rows: Sequence[Attempt], kind: str = "attempts", *, is_quick: bool = False) -> list[Result]:
        """All of them, each group in a process of its own; quickly: all in one."""
        results = [Result(row.name, row.group, "n.a.", self._absent(row)) for row in rows if self._absent(row)]
        present = [row for row in rows if not self._absent(row)]
        for batch in batches(present, is_quick=is_quick):
            results += self._run_batch(batch, kind)
        return self._with_second_goes(results, rows) if self.mode == "none" and kind == "attempts" else results

    def _with_second_goes(self, results: list[Result], rows: Sequence[Attempt]) -> list[Result]:
        """Unguarded, what arrived nowhere goes again, alone: on a busy machine a race can be lost to nobody."""
        for _ in range(SECOND_GOES):
            lost = {result.name for result in results if result.outcome == "blocked"}
            results = [result for result in results if result.name not in lost]
            for row in rows:
                if row.name in lost:
                    results += self._run_batch([row], "attempts")
        return results

    @staticmethod
    def _absent(row: Attempt) -> str:
        return ", ".join(need for need in row.needs if not needs.is_here(need))

    def _run_batch(self, batch: list[Attempt], kind: str) -> list[Result]:
        tokens = {row.name: world.new_token() for row in batch}
        facts: list[dict[str, Any]] = []
        left = list(batch)
        self._refusal = ""
        while left:
            done = self._work(left, tokens, kind)
            facts += done
            started = [fact["start"] for fact in done if "start" in fact]
            if not started:
                break
            left = [row for row in left if row.name not in started]
        time.sleep(SETTLE_SECONDS)
        return list(self._judge(batch, tokens, facts, kind))

    # -- one worker

    def _work(self, rows: list[Attempt], tokens: dict[str, str], kind: str) -> list[dict[str, Any]]:
        """Run attempts until one hangs or ends the process. Returns the journal."""
        scratch = self.folder / f"w{next(self._numbers)}"
        scratch.mkdir()
        journal = scratch / "journal"
        journal.touch()
        policy = scratch / "agentguard.yaml"
        policy.write_text(world.POLICY_WITH_UDP if self._is_with_udp(rows) else world.POLICY, encoding="utf-8")
        order = scratch / "order.json"
        order.write_text(
            json.dumps({
                "mode": self.mode, "policy": str(policy), "journal": str(journal), "scratch": str(scratch), "kind": kind,
                "certificates": str(self.servers.certificates), "modules": MODULES,
                "aims": [{"name": row.name, "token": tokens[row.name]} for row in rows],
            }),
            encoding="utf-8",
        )  # fmt: skip
        for path in (scratch, journal, policy, order):
            os.chown(path, self.uid, self.uid)
        bystander = self._bystander(scratch) if rows[0].group == "bystander" else None
        with Path(scratch, "output").open("wb") as output:
            started = subprocess.Popen(
                self.command(policy, order), stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=scratch,
                env=self._environment(scratch, rows), start_new_session=True, preexec_fn=lambda: stage.become(self.uid),
            )  # fmt: skip
            try:
                self._watch(started, journal, rows)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(started.pid, signal.SIGKILL)
                started.wait()
                stage.end_all()
                if bystander:
                    bystander.wait()
        facts = read(journal)
        if not facts:
            self._note_refusal(Path(scratch, "output").read_text(encoding="utf-8", errors="replace"), rows)
        return facts

    def _note_refusal(self, output: str, rows: list[Attempt]) -> None:
        """A guard that cannot hold does not let the program start: that is told apart from a battery that is broken."""
        told = [line for line in output.splitlines() if "EnforcementUnavailable" in line]
        if told and self.mode != "none":
            self._refusal = told[-1]
        else:
            self.complaints.append(f"{self.mode}: the worker of {rows[0].group!r} did not start: {output[-2000:]}")

    def _bystander(self, scratch: Path) -> subprocess.Popen[bytes]:
        """Somebody else's process of the same user, which the attempts find by a file."""
        started = subprocess.Popen(
            [sys.executable, str(HERE / "bystander.py")], stdout=subprocess.PIPE, cwd=scratch, env={"PATH": os.environ["PATH"]},
            preexec_fn=lambda: stage.become(self.uid), start_new_session=True,
        )  # fmt: skip
        assert started.stdout is not None
        Path("/run/bystander").write_bytes(started.stdout.read())
        time.sleep(SETTLE_SECONDS)
        return started

    @staticmethod
    def _is_with_udp(rows: list[Attempt]) -> bool:
        return any(row.group in {"udp allowed", "controls with udp"} for row in rows)

    def command(self, policy: Path, order: Path) -> list[str]:
        """How the worker is started in this mode."""
        worker = [str(HERE / "worker.py"), str(order)]
        run = [sys.executable, "-m", "agentguard.cli", "run", "--egress", "kernel", "--policy", str(policy)]
        run += ["--store", "memory://", "--"]
        bare = ["/usr/bin/env", f"PYTHONPATH={search_path()}", sys.executable, *worker]
        if self.mode == "layers":
            return [*run, *worker]
        if self.mode == "kernel":
            return [*run, *bare]
        if self.mode == "docker":
            return [sys.executable, str(HERE / "moby.py"), *run, *bare]
        return [sys.executable, *worker]

    def _environment(self, scratch: Path, rows: list[Attempt]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LANG", "COVERAGE_PROCESS_CONFIG"}}
        return kept | {
            "PYTHONPATH": search_path(),
            "HOME": str(scratch), "TMPDIR": str(scratch), "AGENTGUARD_STATE_DIR": str(scratch / "state"),
            "OTEL_SDK_DISABLED": "true", "PYTHONDONTWRITEBYTECODE": "1", "BYPASS_UID": str(self.uid),
            "SSL_CERT_FILE": str(self.servers.certificates), "NODE_EXTRA_CA_CERTS": str(self.servers.certificates),
            "REQUESTS_CA_BUNDLE": str(self.servers.certificates), "CURL_CA_BUNDLE": str(self.servers.certificates),
            "NO_COLOR": "1", "GIT_TERMINAL_PROMPT": "0",
        }  # fmt: skip

    def _watch(self, started: subprocess.Popen[bytes], journal: Path, rows: list[Attempt]) -> None:
        """Wait until it ends, or an attempt has had its time."""
        seconds = {row.name: row.seconds * (4 if row.group in WITH_LIBRARIES else 1) for row in rows}
        deadline, read_bytes, running = time.monotonic() + START_SECONDS, 0, ""
        while started.poll() is None:
            time.sleep(0.01)
            if journal.stat().st_size != read_bytes:
                read_bytes = journal.stat().st_size
                facts = read(journal)
                running = next((fact["start"] for fact in reversed(facts) if "start" in fact), "")
                deadline = time.monotonic() + seconds.get(running, 6.0)
            if time.monotonic() > deadline:
                return

    # -- the judgement

    def _judge(self, batch: list[Attempt], tokens: dict[str, str], facts: list[dict[str, Any]], kind: str) -> Iterator[Result]:
        begins = {fact["start"]: fact["at"] for fact in facts if "start" in fact}
        ends = {fact["end"]: fact for fact in facts if "end" in fact}
        reached = self._attribute(tokens, begins)
        for row in batch:
            end = ends.get(row.name, {"said": "ended or hung" if row.name in begins else "did not run", "ok": False})
            seen = tuple(dict.fromkeys(f"{one.what} at {one.where}:{one.port}" for one in reached.get(row.name, ())))
            if row.name not in begins:
                yield Result(row.name, row.group, "n.a." if self._refusal else "not run", self._refusal or end["said"])
                continue
            words, is_well = (("broken", "works"), end["ok"]) if kind == "controls" else (("leaked", "blocked"), not seen)
            yield Result(row.name, row.group, words[is_well], end["said"], seen, end.get("at", 0.0) - begins[row.name])

    def _attribute(self, tokens: dict[str, str], begins: dict[str, float]) -> dict[str, list[Contact]]:
        """Whose the contacts of denied servers are: by their token, and without one by their time."""
        by_token = {token: name for name, token in tokens.items()}
        reached: dict[str, list[Contact]] = {}
        silent = []
        for contact in self.servers.log.contacts:
            if contact.is_allowed:
                continue
            if not contact.tokens:
                silent.append(contact)
            for token in contact.tokens & set(by_token):
                reached.setdefault(by_token[token], []).append(contact)
        known = set(reached)
        for contact in silent:
            reached.setdefault(running_at(contact.at, begins, known), []).append(contact)
        return reached


def search_path() -> str:
    """PYTHONPATH as it is here: the workers have another working directory."""
    return os.pathsep.join(str(Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry)


def batches(rows: Sequence[Attempt], *, is_quick: bool) -> Iterator[list[Attempt]]:
    """A process for each group, or in a hurry one for all; those that spoil it have their own."""
    groups: dict[str, list[Attempt]] = {}
    for row in rows:
        if row.alone:
            yield [row]
        else:
            groups.setdefault("" if is_quick else row.group, []).append(row)
    yield from groups.values()


def running_at(moment: float, begins: dict[str, float], leaking: set[str]) -> str:
    """The attempt that was running; what a race has left in the queues is the race's, though others have begun since."""
    begun = [name for name, at in begins.items() if at <= moment]
    floods = [name for name in begun if name in leaking and name.startswith("races: ") and moment - begins[name] < ECHO_SECONDS]
    return (floods or begun or [""])[-1]


def read(journal: Path) -> list[dict[str, Any]]:
    """The facts of a journal; a line that is half written is left out."""
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def play(
    mode: str, groups: Sequence[str], *, uid: int, folder: Path, only: Sequence[str] = (), is_quick: bool = False
) -> dict[str, Any]:
    """Everything asked for, under one mode. Runs in namespaces of its own: see stage.py."""
    load()
    services = stage.prepare(folder)
    os.environ["BYPASS_UID"] = str(uid)
    rows = [row for row in ATTEMPTS.rows.values() if not groups or row.group in groups]
    controls = [row for row in CONTROLS.rows.values() if not groups or "controls" in groups]
    if is_quick:
        rows, controls = [row for row in rows if row.quick], [row for row in controls if row.quick]
    if only:
        rows, controls = ([row for row in some if row.name in only] for some in (rows, controls))
    with Servers(folder, services) as servers:
        battery = Battery(mode, uid, folder, servers)
        results = battery.run(rows, is_quick=is_quick)
        working = battery.run(controls, "controls", is_quick=is_quick)
    return {
        "mode": mode, "uid": uid, "machine": platform.machine(), "kernel": platform.release(),
        "attempts": [asdict(result) for result in results], "controls": [asdict(result) for result in working],
        "complaints": battery.complaints,
    }  # fmt: skip
