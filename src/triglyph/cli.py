"""The command line: names the verbs, prints errors kindly, and decides nothing.

Verbs are registered by import path and imported when called, so `triglyph --help` costs no torch.
"""

from __future__ import annotations

import sys
from typing import Any

import cyclopts
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from triglyph import __version__
from triglyph.errors import TriglyphError

app = cyclopts.App(
    name="triglyph",
    help="Read tissue in three scripts: morphology, molecules, language.",
    version=__version__,
    result_action="return_value",
)

_VERBS = {
    "demo": ("triglyph.workflows.demo:demo", "Simulate, train, judge and report, on two CPU cores."),
    "simulate": ("triglyph.workflows.simulate:simulate", "Make a cohort of tissue whose truth is known."),
    "read": ("triglyph.workflows.read:read", "Read vendor folders into a cohort; resumable."),
    "info": ("triglyph.workflows.info:info", "Say what a cohort, a section or a run is."),
    "split": ("triglyph.workflows.split:split", "Divide a cohort into training and test sections."),
    "audit": (
        "triglyph.workflows.audit:audit",
        "Look for leaks: in a split, a run, an encoder.",
    ),
    "embed": ("triglyph.workflows.embed:embed", "Run a frozen encoder over a cohort, once."),
    "train": ("triglyph.workflows.train:train", "Train a recipe; run it again to go on where it stopped."),
    "annotate": ("triglyph.workflows.annotate:annotate", "Label every location of a cohort in plain words."),
    "convert": ("triglyph.workflows.convert:convert", "Turn a published checkpoint into safetensors and JSON."),
    "hescape": (
        "triglyph.workflows.hescape:hescape",
        "HESCAPE's experiment: does alignment help or hurt, and how does batch effect move it?",
    ),
    "transitive": (
        "triglyph.workflows.transitive:transitive",
        "SpatialWhisperer's bridge: do words and images that never met find each other through expression?",
    ),
}
_GROUPS = {
    "bench": (
        "Judge a model by a protocol.",
        {
            "list": ("triglyph.workflows.bench:bench_list", "List the protocols."),
            "show": ("triglyph.workflows.bench:bench_show", "Show a protocol's card."),
            "run": ("triglyph.workflows.bench_run:bench_run", "Run protocols on held-out sections."),
            "compare": ("triglyph.workflows.bench:bench_compare", "Put the results of several runs side by side."),
        },
    ),
    "encoders": (
        "What encoders there are.",
        {
            "list": ("triglyph.workflows.encoders:encoders_list", "List all encoders."),
            "show": ("triglyph.workflows.encoders:encoders_show", "Show an encoder's card."),
        },
    ),
}

for _name, (_path, _help) in _VERBS.items():
    app.command(_path, name=_name, help=_help)
for _name, (_help, _commands) in _GROUPS.items():
    _group = cyclopts.App(name=_name, help=_help)
    for _verb, (_path, _text) in _commands.items():
        _group.command(_path, name=_verb, help=_text)
    app.command(_group)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 0 is success, 1 partial failure, 2 an error of use or data, 130 an interruption."""
    console = Console(stderr=True)
    try:
        result: Any = app(sys.argv[1:] if arguments is None else arguments)
    except TriglyphError as error:
        lines = [escape(error.what)]
        lines += [f"[dim]where[/] {escape(error.where)}"] if error.where else []
        lines += [f"[bold]mend[/]  {escape(error.mend)}"] if error.mend else []
        console.print(Panel("\n".join(lines), title=type(error).__name__, title_align="left", border_style="red"))
        return 2
    except KeyboardInterrupt:
        console.print("\nInterrupted. Run the same command again to go on.")
        return 130
    return int(getattr(result, "exit_code", 0))


if __name__ == "__main__":
    sys.exit(main())
