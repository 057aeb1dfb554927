"""Toy datasets for the tests of fetching: one file, an archive of two members, many single files."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from benchmark.dataset import Checksum, Dataset, DatasetCard, Manifest, Source
from benchmark.download import Patience
from benchmark.preparation import PreparedWriter
from tests.http_server import Server

CONTENT = bytes(range(256)) * 4000
PATIENCE = Patience(attempts=3, wait=0.0, stall=0.3)
MEMBERS = {"clips/one.wav": b"first clip", "clips/two.wav": b"second clip"}


def sums(content: bytes) -> Checksum:
    return Checksum(hashlib.sha256(content).hexdigest(), len(content))


def dataset(*sources: Source) -> type[Dataset]:
    class Toy(Dataset):
        card: ClassVar[DatasetCard] = DatasetCard(
            name="toy",
            title="Toy",
            licence="CC0",
            citation="none",
            shapes={"a": (1,)},
            classes=("no", "yes"),
            splits={"plain": "as it comes"},
            default_split="plain",
            sources=sources,
        )

        def prepare(self, raw: Path, out: PreparedWriter) -> None:
            raise AssertionError(f"fetching prepares nothing in {raw} or {out}")

    return Toy


def one_file(server: Server, *paths: str) -> type[Dataset]:
    server.content |= dict.fromkeys(paths, CONTENT)
    return dataset(Source(file="toy.bin", urls=tuple(server.url + path for path in paths), checksum=sums(CONTENT)))


def archive(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(name, content)
    return stream.getvalue()


def write_manifest(file: Path, members: Mapping[str, bytes]) -> Path:
    rows = [f"{path},{sums(content).sha256},{len(content)}" for path, content in members.items()]
    file.write_text("\n".join(["path,sha256,size", *rows]) + "\n")
    return file


def archived(server: Server, tmp_path: Path, *archives: bytes, single: bool = False) -> type[Dataset]:
    """A dataset of two members, its archive served once per given content."""
    manifest = write_manifest(tmp_path / "sha256.csv", MEMBERS)
    server.content |= {f"/{number}.zip": content for number, content in enumerate(archives)}
    urls = tuple(f"{server.url}/{number}.zip" for number in range(len(archives)))
    patterns = (server.url + "/single/{path}",) if single else ()
    return dataset(
        Source(file="toy.zip", urls=urls, manifest=Manifest(manifest, patterns), obtain="" if urls else "By post.")
    )


def single_files(server: Server, tmp_path: Path, members: Mapping[str, bytes] = MEMBERS) -> type[Dataset]:
    """A dataset of files that belong to no archive."""
    server.content |= {f"/single/{path}": content for path, content in members.items()}
    manifest = Manifest(write_manifest(tmp_path / "sha256.csv", members), (server.url + "/single/{path}",))
    return dataset(Source(file="clips", manifest=manifest))
