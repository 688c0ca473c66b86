"""The command `trireme`: finds the subcommand, runs it, and turns how it ended into an exit code.

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 3 a regression gate was breached, 130 interrupted.
It must not know what a command does.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from services.cli.arguments import fail
from services.contracts.errors import TriremeError, UserError
from services.control import light_transformers
from services.control.lasting_output import lasting_output

COMMANDS = {
    "train": "train a policy by reinforcement learning",
    "sft": "train a policy on demonstrations",
    "prefer": "train a policy on preferences",
    "pipeline": "run a recipe of several commands, each on what earlier ones made",
    "sample": "write down completions of a model, and the best as demonstrations",
    "reward-model": "train a reward model on judged completions",
    "label-pairs": "have a judge compare completions, and write preference data",
    "revise": "have a judge revise answers by a constitution",
    "label-steps": "label steps of completions by where the policy's continuations lead",
    "average": "average a trained model with the one that it was trained from",
    "evaluate": "measure accuracy and pass@k on held-out prompts, alone or against the model before",
    "status": "show a live run and its rollout workers",
    "scale": "give a live run another number of rollout workers",
    "pause": "have a live run hold still",
    "resume": "have a paused run go on",
    "checkpoint": "have a live run commit a checkpoint now",
    "drain": "have a live run come to a good end",
    "report": "make curves and a one-file HTML report of a run",
    "adapt": "keep a reward model learning while a policy is trained against it",
    "verify": "check that a run kept its promises, from its ledger and checkpoints",
    "reward": "serve a reward, or check a reward service",
}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    with lasting_output():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    # Ray forks while reward calls are open; gRPC's handlers for that only write warnings here.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # a failed call is told once, by the command
    light_transformers.allow()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return fail(UserError(f"trireme has no command {name!r}\n\n{usage()}"))
    try:
        return int(importlib.import_module(f"services.cli.{name.replace('-', '_')}").main(rest))
    except TriremeError as error:
        return fail(error)
    except ModuleNotFoundError as error:
        return fail(UserError(f"`trireme {name}` needs {error.name}: pip install 'trireme-rlhf[cpu]' (or [gpu])"))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def usage() -> str:
    lines = "\n".join(f"  {name:12} {what}" for name, what in COMMANDS.items())
    return (
        f"usage: trireme COMMAND [run.yaml | RUN] [--section.key value ...]\n\n{lines}\n\n"
        "`trireme COMMAND --help` tells more."
    )


if __name__ == "__main__":
    sys.exit(main())
