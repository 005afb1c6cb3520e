"""`agentguard run`: a program under the guard, without changing it.

A Python script or module runs in this process, after `instrument()`. Anything else replaces this process. Both ways its
Python children are instrumented as they start, by a `sitecustomize` on PYTHONPATH.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import click

from agentguard.cli._command import Command, policy_option, store_option
from agentguard.context import is_switched_off
from agentguard.policy.model import Mode, Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

_BOOTSTRAP = Path(__file__).parent / "bootstrap"
_SUFFIXES = (".py", ".pyw")

logger: logging.Logger = logging.getLogger("agentguard")


@click.command(cls=Command, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@policy_option
@click.option("--agent", metavar="NAME", envvar="AGENTGUARD_AGENT", show_envvar=True, help="The agent that the program is.")
@click.option(
    "--mode",
    type=click.Choice(["enforce", "report"]),
    envvar="AGENTGUARD_MODE",
    show_envvar=True,
    help="Outranks the policy's: report refuses nothing.",
)
@click.option(
    "--egress",
    type=click.Choice(["auto", "kernel", "in_process"]),
    envvar="AGENTGUARD_EGRESS",
    show_envvar=True,
    help="Who enforces external_calls: the kernel, over every process that the program starts; this process alone; or the "
    "kernel where it can be had, which is the default.",
)
@click.option(
    "--reload",
    "reloads",
    is_flag=True,
    help="Under the kernel: adopt changes of the policy file, also those that open more. Keep the file where the program "
    "cannot write it.",
)
@store_option
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM [ARGS]...")
def run(
    policy_path: str | None,
    agent: str | None,
    mode: str | None,
    egress: str | None,
    reloads: bool,
    store_url: str | None,
    program: tuple[str, ...],
) -> NoReturn:
    r"""Run a program, and its Python children, under the guard.

    \b
        agentguard run app.py --port 8000
        agentguard run -m package.module
        agentguard run --policy prod.yaml -- gunicorn app:app

    The exit code is the program's own.
    """
    argv = list(program[1:] if program[0] == "--" else program)
    if not argv:
        message = "name a program to run: a script, -m MODULE, or a command"
        raise click.UsageError(message)
    hold = functools.partial(_hold, egress, reloads=reloads)
    _set_environment(policy_path, agent, mode, store_url)
    if argv[0] == "-m":
        if len(argv) == 1:
            message = "-m needs the name of a module"
            raise click.UsageError(message)
        hold()
        _instrument()
        _run_module(argv[1], argv[2:])
    if argv[0].endswith(_SUFFIXES):
        if not Path(argv[0]).is_file():
            message = f"no such script: {argv[0]}"
            raise click.UsageError(message)
        hold()
        _instrument()
        _run_script(argv[0], argv[1:])
    _run_command(argv, hold)


def _set_environment(policy_path: str | None, agent: str | None, mode: str | None, store_url: str | None) -> None:
    """Say it to this process and to its children, which may start in another folder."""
    from agentguard.cli._sources import find_policy_file

    found = find_policy_file(policy_path)
    given = {
        "AGENTGUARD_RUN": "1",
        "AGENTGUARD_POLICY": None if found is None else str(found.resolve()),
        "AGENTGUARD_AGENT": agent,
        "AGENTGUARD_MODE": mode,
        "AGENTGUARD_STORE": store_url,
        "PYTHONPATH": os.pathsep.join([str(_BOOTSTRAP), *_other_entries(os.environ.get("PYTHONPATH", ""))]),
    }
    os.environ.update({name: value for name, value in given.items() if value})


def _other_entries(path: str) -> list[str]:
    return [entry for entry in path.split(os.pathsep) if entry and entry != str(_BOOTSTRAP)]


def _hold(egress: str | None, *, reloads: bool) -> None:
    """Have the kernel hold the policy's boundary, if it is asked for: what goes on is a child of this process then."""
    from agentguard.cli._sources import find_policy_file, load_policy
    from agentguard.egress.kernel.hold import chosen, hold_program

    if is_switched_off():
        os.environ["AGENTGUARD_EGRESS"] = "in_process"
        return
    path = find_policy_file(None)
    policy = Policy(mode=Mode.REPORT) if path is None else load_policy(path.resolve())
    if mode := os.environ.get("AGENTGUARD_MODE"):
        policy = dataclasses.replace(policy, mode=Mode(mode))
    enforcement = chosen(policy, egress, default="auto")
    watched = str(path.resolve()) if reloads and path is not None else ""
    is_held = hold_program(policy, enforcement, reload=watched)
    # Programs below instrument themselves: they neither try what could not be had, nor ask for more than was chosen here.
    os.environ["AGENTGUARD_EGRESS"] = enforcement if is_held else "in_process"


def _instrument() -> None:
    import agentguard
    from agentguard.cli._banner import banner

    _announce(banner(agentguard.instrument()))


def _announce(lines: Sequence[str]) -> None:
    """One banner for people, one log record for all others."""
    wanted = os.environ.get("AGENTGUARD_BANNER")
    if wanted == "1" or (not wanted and sys.stderr.isatty()):
        click.echo("\n".join(lines), err=True)
    else:
        logger.info("%s", "; ".join(line.strip() for line in lines))


# ----------------------------------------------------------------------------------------------------------- in process


def _run_script(script: str, args: Sequence[str]) -> NoReturn:
    """As `python script args`: its folder is first on the path, and it is `__main__` for good, threads and pickle included."""
    path = str(Path(script).resolve())
    sys.argv = [script, *args]
    _put_first(str(Path(path).parent))
    main = _fresh_main()
    main.__file__ = path
    try:
        code = compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
        exec(code, main.__dict__)  # noqa: S102 - the user's own program
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - not ours: told as the interpreter would tell it
        _end_with(error)
    sys.exit(0)


def _run_module(module: str, args: Sequence[str]) -> NoReturn:
    """As `python -m module args`."""
    import runpy

    sys.argv = [module, *args]
    _put_first(str(Path.cwd()))
    _fresh_main()
    try:
        runpy._run_module_as_main(module)  # type: ignore[attr-defined]  # noqa: SLF001 - what `python -m`, pdb and cProfile call
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - not ours: told as the interpreter would tell it
        _end_with(error)
    sys.exit(0)


def _fresh_main() -> ModuleType:
    """A `__main__` of the program's own. It stays when the program's last line is done: threads and pickles look there."""
    main = ModuleType("__main__")
    main.__builtins__ = sys.modules["builtins"]  # type: ignore[attr-defined]  # as the interpreter sets it
    sys.modules["__main__"] = main
    return main


def _put_first(folder: str) -> None:
    """Replace the folder of our own script, which Python has put first, by the program's."""
    if sys.flags.safe_path:
        return
    sys.path[:1] = [folder]


def _end_with(error: Exception | KeyboardInterrupt) -> NoReturn:
    """The program's uncaught exception: its own hook is told, with the frames of the program alone."""
    trace = _frames_of_program(error.__traceback__)
    sys.excepthook(type(error), error.with_traceback(trace), trace)
    sys.stdout.flush()
    sys.exit(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)


def _frames_of_program(found: TracebackType | None) -> TracebackType | None:
    ours = (__file__, "<frozen runpy>", "<frozen importlib._bootstrap>")
    trace = found
    while trace is not None and (
        trace.tb_frame.f_code.co_filename in ours or trace.tb_frame.f_code.co_filename.endswith("runpy.py")
    ):
        trace = trace.tb_next
    return trace


# ------------------------------------------------------------------------------------------------------ another program


def _run_command(argv: Sequence[str], hold: Callable[[], None]) -> NoReturn:
    """Replace this process by the program; Windows, which cannot, waits for it."""
    found = shutil.which(argv[0])
    if found is None:
        message = f"no such program: {argv[0]}"
        raise click.UsageError(message)
    from agentguard.cli._banner import banner_of_command

    hold()
    if is_switched_off():
        _instrument()  # it says so, and leaves a record
    else:
        _announce(banner_of_command(argv[0], os.environ.get("AGENTGUARD_POLICY")))
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(found, list(argv))  # noqa: S606 - the user's own program
    sys.exit(subprocess.run([found, *argv[1:]], check=False).returncode)  # noqa: S603 - the same
