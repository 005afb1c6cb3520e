"""What starting costs, in CPU of a fresh process, beside `import opentelemetry.sdk.trace` in the same run.

    python benchmarks/bench_startup.py [rounds]

Each figure is the median over rounds of user + system time of a child, less that of a bare interpreter; rounds are interleaved.
Children read bytecode from a cache of their own, which the first round fills and does not count, whatever the shell says about
bytecode: compiling the source is paid for once per installation, not at every start.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

POLICY = """
version: 1
agents:
  - name: bench
    external_calls: {allowed_domains: [api.example.com], blocked_domains: ["*"]}
    llm: {providers: [openai]}
    budgets: [{limit: 100000 tokens}, {limit: $5.00, every: day}]
"""

TARGETS = {"import agentguard": 0.7, "instrument() without a policy": 3.0, "instrument() with a policy file": 4.5}


def environment_of_children(scratch: Path) -> dict[str, str]:
    """Ours without what would change how agentguard or the interpreter starts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AGENTGUARD_", "OTEL_", "PYDANTIC_"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return {**kept, "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"), "AGENTGUARD_STATE_DIR": str(scratch / "state")}


def cpu_ms(code: str, directory: Path, environment: dict[str, str]) -> float:
    """CPU of a fresh interpreter that runs this, in milliseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=directory, env=environment, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def main(rounds: int) -> None:
    """Run all starts, and print them against their targets."""
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        bare, written = scratch / "bare", scratch / "written"
        bare.mkdir()
        written.mkdir()
        (written / "agentguard.yaml").write_text(POLICY, encoding="utf-8")
        environment = environment_of_children(scratch)
        starts = {
            "bare interpreter": ("pass", bare),
            "import opentelemetry.sdk.trace": ("import opentelemetry.sdk.trace", bare),
            "import agentguard": ("import agentguard", bare),
            "instrument() without a policy": ("import agentguard; agentguard.instrument()", bare),
            "instrument() with a policy file": ("import agentguard; agentguard.instrument('agentguard.yaml')", written),
        }
        samples: dict[str, list[float]] = {name: [] for name in starts}
        for _ in range(rounds + 1):
            for name, (code, where) in starts.items():
                samples[name].append(cpu_ms(code, where, environment))
    medians = {name: statistics.median(values[1:]) for name, values in samples.items()}
    floor = medians["bare interpreter"]
    unit = medians["import opentelemetry.sdk.trace"] - floor
    for name, value in medians.items():
        ratio = f"{(value - floor) / unit:5.2f} x" if name != "bare interpreter" else ""
        target = f"target <= {TARGETS[name]}" if name in TARGETS else ""
        print(f"{name:34} {value - floor:8.1f} ms   {ratio:8} {target}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
