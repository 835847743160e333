"""`triglyph convert`: a published checkpoint in, a release of ours out; nothing in the file is executed."""

from __future__ import annotations

from pathlib import Path


def convert(file: Path, *, out: Path, vocabulary: Path | None = None, recipe: str = "spatialwhisperer") -> Path:
    """Turn a published checkpoint into safetensors and JSON.

    It knows SpatialWhisperer's (`spatialwhisperer.ckpt`).

    Parameters
    ----------
    file
        The file as it was published.
    out
        New folder; `--model` of the other verbs takes it.
    vocabulary
        BioBERT's `vocab.txt` or its folder; otherwise it comes from the Hugging Face cache or hub.
    recipe
        The model in the file: a shipped recipe, or a YAML file where its space is not 2048 wide.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    WeightsError
        The file is damaged, of another model, or holds more than tensors and configurations.
    """
    from rich.console import Console
    from rich.markup import escape

    from triglyph.apply.checkpoints.spatialwhisperer import convert_spatialwhisperer

    manifest = convert_spatialwhisperer(Path(file), Path(out), vocabulary=vocabulary, recipe=recipe)
    console = Console(stderr=True)
    named = [f"{t['encoder']} ({t['licence']})" for t in manifest["encoders"].values() if t["fingerprint"] is None]
    console.print(f"{manifest['tensors']} tensors in [bold]{escape(str(out))}[/]; {manifest['card']['licence']}")
    console.print(f"not in the file, and looked for when the model is loaded: {', '.join(named)}", highlight=False)
    return Path(out)
