"""Files that images name, and keys of encrypted ones: nothing is opened unless the caller says so."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Run

import qcowkit
from qcowkit import BackingRef, KeyRequest
from qcowkit.errors import DeniedError, EncryptedError, InvalidArgumentError, WrongKeyError

KEY = "a secret that nobody prints"
FAST = {"iter-time": 1}


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """sub/top.qcow2 over base.qcow2, which names a raw file beside it."""
    (tmp_path / "bottom.raw").write_bytes(b"bottom".ljust(1 << 20, b"\0"))
    with qcowkit.create(tmp_path / "base.qcow2", backing="bottom.raw", backing_format="raw") as image:
        image.write(131072, b"base")
    (tmp_path / "sub").mkdir()
    top = tmp_path / "sub" / "top.qcow2"
    with qcowkit.create(top, backing="../base.qcow2", backing_format="qcow2") as image:
        assert image.read(131072, 4) == b"base"
        image.write(200_000, b"top")
    return top


def test_denied_by_default_but_open_for_the_rest(chain: Path) -> None:
    with qcowkit.open(chain) as image:
        assert image.read(200_000, 3) == b"top"
        assert image.chain_length == 1
        assert image.info()["backing-filename"] == "../base.qcow2"
        with pytest.raises(DeniedError) as caught:
            image.read(0, 6)
    assert caught.value.guest_offset == 0
    assert caught.value.structure == "backing_file"
    assert caught.value.hint is not None
    assert "follow" in caught.value.hint


def test_policies_of_paths(chain: Path, tmp_path: Path) -> None:
    with qcowkit.open(chain, backing="follow") as image:
        assert (image.read(0, 6), image.read(131072, 4)) == (b"bottom", b"base")
        assert image.chain_length == 3
    with pytest.raises(DeniedError, match="below its own directory"):
        qcowkit.open(chain, backing="same-dir")
    with qcowkit.open(tmp_path / "base.qcow2", backing="same-dir") as image:
        assert image.read(0, 6) == b"bottom"
    with pytest.raises(InvalidArgumentError, match="backing"):
        qcowkit.open(chain, backing="maybe")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="backing"):
        qcowkit.open(chain, backing=3)  # type: ignore[arg-type]


def test_a_missing_file_of_the_chain_is_named(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "bottom.raw").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        qcowkit.open(chain, backing="follow")
    assert caught.value.filename.endswith("bottom.raw")


def test_a_function_decides(chain: Path, tmp_path: Path) -> None:
    asked: list[BackingRef] = []

    def opener(ref: BackingRef) -> object:
        asked.append(ref)
        if ref.name == "bottom.raw":
            return io.BytesIO(b"bucket".ljust(1 << 20, b"\0"))
        return tmp_path / "base.qcow2"

    with qcowkit.open(chain, backing=opener) as image:  # type: ignore[arg-type]
        assert (image.read(0, 6), image.read(131072, 4)) == (b"bucket", b"base")
    assert asked == [
        BackingRef("backing", "../base.qcow2", "qcow2", 0, str(chain)),
        BackingRef("backing", "bottom.raw", "raw", 1, str(tmp_path / "base.qcow2")),
    ]
    with qcowkit.open(chain, backing=lambda ref: (b"raw bytes".ljust(4096, b"\0"), "raw")) as image:
        assert image.read(0, 9) == b"raw bytes"
    with pytest.raises(DeniedError, match="refused"):
        qcowkit.open(chain, backing=lambda ref: None)
    with pytest.raises(ZeroDivisionError):
        qcowkit.open(chain, backing=lambda ref: 1 // 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError):
        qcowkit.open(chain, backing=lambda ref: 5)  # type: ignore[arg-type, return-value]


def test_an_image_without_a_place_has_no_directory(chain: Path, tmp_path: Path) -> None:
    data = (tmp_path / "base.qcow2").read_bytes()
    with pytest.raises(DeniedError, match="directory"):
        qcowkit.open(data, backing="same-dir")
    with qcowkit.open(data, backing=lambda ref: tmp_path / ref.name) as image:
        assert image.read(0, 6) == b"bottom"


def test_scratch_writes_no_layer(chain: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with qcowkit.open(chain, "scratch", backing="follow") as image:
        image.write(0, b"edited")
        assert image.read(0, 8) == b"edited\0\0"
        with pytest.raises(InvalidArgumentError, match=r"r\+"):
            image.commit()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_write_that_needs_a_denied_layer_is_refused(chain: Path) -> None:
    before = chain.read_bytes()
    with qcowkit.open(chain, "r+") as image, pytest.raises(DeniedError):
        image.write(0, b"part of a cluster")
    assert chain.read_bytes() == before


@pytest.mark.parametrize("raw", [False, True])
def test_data_files_go_through_the_same_gate(raw: bool, tmp_path: Path, qemu_img: Run) -> None:
    path = tmp_path / "disk.qcow2"
    with qcowkit.create(path, "1M", data_file="disk.data", data_file_raw=raw) as image:
        image.write(70_000, b"outside")
    qemu_img("check", str(path))
    with qcowkit.open(path) as image, pytest.raises(DeniedError, match="data file"):
        image.read(70_000, 7)
    with qcowkit.open(path, backing="same-dir") as image:
        assert image.read(70_000, 7) == b"outside"
    before = (tmp_path / "disk.data").read_bytes()
    with qcowkit.open(path, "scratch", backing="same-dir") as image:
        image.write(70_000, b"edited!")
        assert image.read(70_000, 7) == b"edited!"
        with pytest.raises(qcowkit.errors.UnsupportedError, match="convert"):
            image.save_as(tmp_path / "saved.qcow2")
        image.convert(tmp_path / "one.qcow2")
    assert (tmp_path / "disk.data").read_bytes() == before
    with qcowkit.open(tmp_path / "one.qcow2") as image:
        assert image.read(70_000, 7) == b"edited!"


@pytest.fixture
def encrypted(tmp_path: Path) -> Path:
    path = tmp_path / "secret.qcow2"
    with qcowkit.create(path, "4M", key=KEY, encryption=FAST) as image:
        image.write(1000, b"plain text")
    return path


def test_encrypted_images_need_a_key(encrypted: Path) -> None:
    assert b"plain text" not in encrypted.read_bytes()
    with qcowkit.open(encrypted) as image:
        assert image.info()["encrypted"] is True
        with pytest.raises(EncryptedError):
            image.read(1000, 10)
    for key in (KEY, KEY.encode(), lambda request: KEY):
        with qcowkit.open(encrypted, key=key) as image:
            assert image.read(1000, 10) == b"plain text"
    with qcowkit.open(encrypted, "scratch", key=KEY) as image:
        image.write(1000, b"PLAIN")
        assert image.read(1000, 10) == b"PLAIN text"


def test_qemu_opens_what_was_encrypted_here(encrypted: Path, qemu_img: Run, tmp_path: Path) -> None:
    options = f"driver=qcow2,file.filename={encrypted},encrypt.key-secret=s"
    qemu_img("convert", "--object", f"secret,id=s,data={KEY}", "--image-opts", options, "-O", "raw", "plain.raw")
    assert (tmp_path / "plain.raw").read_bytes()[1000:1010] == b"plain text"


def test_keys_are_asked_for_until_one_fits_and_never_printed(encrypted: Path) -> None:
    asked: list[KeyRequest] = []
    answers: list[str | None] = ["wrong", KEY]

    def key(request: KeyRequest) -> str | None:
        asked.append(request)
        return answers[request.attempt]

    with qcowkit.open(encrypted, key=key) as image:
        assert image.read(1000, 5) == b"plain"
        assert KEY not in repr(image)
    assert asked == [KeyRequest(0, str(encrypted), "LUKS", attempt) for attempt in (0, 1)]
    with pytest.raises(WrongKeyError) as caught:
        qcowkit.open(encrypted, key="hunter2")
    assert "hunter2" not in f"{caught.value!r} {caught.value} {caught.value.__notes__}"
    answers[1] = None
    with pytest.raises(WrongKeyError):
        qcowkit.open(encrypted, key=key)
    with pytest.raises(TypeError) as wrong:
        qcowkit.open(encrypted, key=5)  # type: ignore[arg-type]
    assert "5" not in str(wrong.value)
    with pytest.raises(ZeroDivisionError):
        qcowkit.open(encrypted, key=lambda request: 1 // 0)  # type: ignore[arg-type]


LOOPS: list[Callable[[Path], object]] = [
    lambda path: qcowkit.open(path, backing="follow"),
    lambda path: qcowkit.open(path, backing=lambda ref: path),
]


@pytest.mark.parametrize("open_it", LOOPS)
def test_a_chain_that_leads_back_is_refused(open_it: Callable[[Path], object], disk: Path, qemu_img: Run) -> None:
    qemu_img("rebase", "-u", "-b", disk.name, "-F", "qcow2", str(disk))
    with pytest.raises(qcowkit.errors.CorruptImageError, match="back to"):
        open_it(disk)
