"""Import every dependency that pyproject.toml names, so that a broken resolve is seen at once."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

MODULES = {
    "huggingface-hub": "huggingface_hub",
    "openslide-bin": "openslide_bin",
    "openslide-python": "openslide",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "spatialdata-io": "spatialdata_io",
}


def main() -> int:
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    names = [re.split(r"[\s<>=!~;\[]", line)[0] for line in project["dependencies"]]
    for name in names:
        module = importlib.import_module(MODULES.get(name, name))
        print(f"{name:18} {getattr(module, '__version__', '')}")
    import torchvision.ops  # a torch of another build fails here

    assert torchvision.ops.nms is not None
    return 0


if __name__ == "__main__":
    sys.exit(main())
