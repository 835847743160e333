"""The command line costs nothing to ask for help, and says errors in three parts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from triglyph.cli import _GROUPS, _VERBS, app, main


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import triglyph",
        "import triglyph.cli\ntry: triglyph.cli.app(['--help'])\nexcept SystemExit: pass",
        "import triglyph.metrics.result, triglyph.genes",
    ],
)
def test_import_and_help_load_no_torch_and_no_spatialdata(statement):
    loaded = _loaded_by(statement)
    assert not loaded & {"torch", "lightning", "timm", "transformers", "spatialdata", "scanpy", "anndata", "sklearn"}


def test_reading_tissue_loads_no_torch():
    assert "torch" not in _loaded_by("import triglyph as tg; tg.Cohort; tg.Section; tg.Split; tg.read")


def test_every_public_name_resolves():
    import triglyph

    for name in triglyph.__all__:
        assert getattr(triglyph, name) is not None


@pytest.mark.parametrize("verb", [*_VERBS, *(f"{g} {v}" for g, (_, verbs) in _GROUPS.items() for v in verbs)])
def test_every_verb_shows_its_help(verb, capsys):
    app([*verb.split(), "--help"])
    assert "Usage" in capsys.readouterr().out


def test_an_error_names_what_where_and_mend(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    shown = capsys.readouterr().err
    assert "mend" in shown
    assert "where" in shown


def test_unknown_options_are_refused(capsys):
    with pytest.raises(SystemExit) as leave:
        main(["info", "x", "--nonsense", "1"])
    assert leave.value.code != 0
