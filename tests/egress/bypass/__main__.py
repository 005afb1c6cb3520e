"""The battery on the command line: `python tests/egress/bypass --mode kernel --group sockets`, or `--table FILE`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parent))

import stage
from battery import MODES, load, play
from table import ATTEMPTS, CONTROLS


def main(arguments: list[str]) -> int:
    """Run what is asked for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", default="none", choices=list(MODES))
    parser.add_argument("--group", action="append", default=[], help="a group, or `controls`; all without it")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="an attempt or a control by name")
    parser.add_argument("--quick", action="store_true", help="the subset that every test run looks at")
    parser.add_argument("--as-self", action="store_true", help="as the user who runs it, not as nobody")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    parser.add_argument("--table", metavar="FILE", help="run everything and write the page of results")
    parser.add_argument("--kept", metavar="FOLDER", help="with --table: take results that are there, and keep new ones there")
    asked = parser.parse_args(arguments)
    if asked.list:
        load()
        for table in (ATTEMPTS, CONTROLS):
            for row in table.rows.values():
                print(f"{row.group:12} {row.name}")
        return 0
    if asked.table:
        from report import write_table

        with TemporaryDirectory() as fresh:
            write_table(Path(asked.table), Path(asked.kept or fresh))
        return 0
    if not stage.is_entered():
        stage.enter([str(Path(__file__).resolve().parent), *arguments])
    os.umask(0o022)
    with TemporaryDirectory(prefix="bypass") as folder:
        Path(folder).chmod(0o755)
        uid = 0 if asked.as_self or not stage.can_be_nobody() else stage.NOBODY
        found = play(asked.mode, asked.group, uid=uid, folder=Path(folder), only=asked.only, is_quick=asked.quick)
    if asked.json:
        Path(asked.json).write_text(json.dumps(found), encoding="utf-8")
    else:
        show(found)
    return 0


def show(found: dict[str, object]) -> None:
    """One line a result, and the sums."""
    sums: dict[str, int] = {}
    for result in (*found["attempts"], *found["controls"]):
        sums[result["outcome"]] = sums.get(result["outcome"], 0) + 1
        said, seen = " ".join(result["said"].split())[:110], ", ".join(result["seen"][:2])[:90]
        print(f"{result['outcome']:8} {result['name']:60} {result['seconds']:5.2f} {said} {seen}")
    print(found["mode"], sums)
    for complaint in found["complaints"]:
        print("!", complaint)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
