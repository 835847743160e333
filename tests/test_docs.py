"""The documents tell the truth: their commands exist, and the quickstart runs from top to bottom."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from triglyph.cli import app, main

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(text: str) -> list[list[str]]:
    """Arguments of every `triglyph` line, continuations joined."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in found if words and words[0] == "triglyph"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_in_the_docs_is_understood(page):
    for language, text in blocks(page):
        if language == "bash":
            for words in commands(text):
                app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_the_docs_name_are_there(page):
    for name in re.findall(r"`((?:docs|recipes|tests|src|benchmarks)/[\w./-]+\.\w+)`", page.read_text("utf-8")):
        assert (ROOT / name).exists(), name


def test_the_quickstart_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, text in blocks(ROOT / "docs" / "quickstart.md"):
        if language == "python":
            exec(compile(text, "quickstart.md", "exec"), {})
        for words in commands(text) if language == "bash" else []:
            assert main(words) == 0, words
    shutil.rmtree(tmp_path / "tissue")
