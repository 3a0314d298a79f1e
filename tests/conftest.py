"""What several test files share: a cache of their own, small labelled files, and the sentence of a refusal."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.errors import KshotError


@pytest.fixture(scope="session", autouse=True)
def kshot_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the tests' corpora and tokens out of the user's cache."""
    folder = tmp_path_factory.mktemp("kshot-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KSHOT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def fair_share_of_cores() -> None:
    """Tests that run side by side (``-n``) share the machine's cores; threads beyond them wait for one another."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def matmul_route() -> Iterator[None]:
    """Leave no route of fp32 products to the next test: it is a setting of the process, which a training makes."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def labelled(labels: Iterable[str], each: int = 4, prefix: str = "") -> list[dict[str, Any]]:
    """Return ``each`` different texts for every label."""
    return [{"text": f"{prefix}{label} number {index}", "label": label} for label in labels for index in range(each)]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def refusal(call: Callable[[], Any], kind: type[KshotError] = KshotError) -> str:
    """Return the sentence with which a call is refused."""
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)
