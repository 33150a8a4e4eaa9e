"""``workers``: one training on several machines, or in several processes of this one."""

from __future__ import annotations

import argparse

from support.command_line import utf8_text
from training.cluster.launcher import COMMANDS, MOST_LOCAL_WORKERS, become, check_command, run_here
from training.cluster.place import WAIT_SECONDS, Place, WorkersError, check_wait

DESCRIPTION = """\
Trains one model on several machines: give the same command on each of them, with another --index. Each computes its
part of every batch, and they compute what one machine would. The first one writes state, log and result; the others
need the model and the texts, no shared folder. When one is lost, all end, and the same commands go on where they were.

Programs that start such clusters set TF_CONFIG instead; then finetune needs no launcher.

The ports are open to whoever reaches them, and nothing is encrypted: use a network of your own.
"""
EXAMPLES = (
    "{command} --hosts a:2222,b:2222 --index 0 -- finetune --model out/song-ci --text demo/held-out.jsonl "
    "--output out/song-ci-6",
    "{command} --local 2 -- finetune --model out/song-ci --text demo/held-out.jsonl --output out/song-ci-7 --steps 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hosts",
        type=utf8_text,
        metavar="HOST:PORT,...",
        help="the workers, in the same order everywhere; the first one writes the result",
    )
    parser.add_argument("--index", type=int, metavar="I", help="which of them this machine is, from 0")
    parser.add_argument("--local", type=int, metavar="N", help="start N workers on this machine, to try it out")
    parser.add_argument(
        "--wait",
        type=float,
        default=WAIT_SECONDS,
        metavar="SECONDS",
        help="how long a worker waits for the others to start (default: %(default)g)",
    )
    parser.add_argument(
        "words", nargs="+", metavar="COMMAND", help=f"after --: {' or '.join(COMMANDS)}, with its options"
    )


def run(args: argparse.Namespace) -> None:
    check_command(args.words)
    check_wait("--wait", args.wait)
    if args.local is not None:
        if args.hosts is not None or args.index is not None:
            raise WorkersError("--local: starts all workers on this machine: leave --hosts and --index out")
        if not 1 <= args.local <= MOST_LOCAL_WORKERS:
            raise WorkersError(f"--local {args.local}: expected 1 or more, and {MOST_LOCAL_WORKERS} at most")
        if code := run_here(args.local, args.words, args.wait):
            raise SystemExit(code)  # the chief has said why
        return
    if args.hosts is None or args.index is None:
        raise WorkersError("workers: give --hosts and --index on each machine, or --local N")
    become(Place(tuple(args.hosts.split(",")), args.index, args.wait), args.words)
