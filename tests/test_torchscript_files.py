"""Files that are no TorchScript, damaged or hostile: one clear error each, and never a crash."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mera_torch.converters import from_torchscript, load_model
from mera_torch.converters.torchscript import archive
from mera_torch.converters.torchscript.pickles import check_pickle
from mera_torch.errors import CorruptFileError, InvalidModelError, MeraError, UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore")
DESC = {"x": ((1, 3, 8, 8), "float32")}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.norm(self.conv(x)))
        for i in range(3):
            y = y * 0.5 + i
        y[:, 0] = 1.0
        return {"y": self.head(torch.cat([y, y], 0).mean([2, 3]))}


@pytest.fixture(scope="module")
def data() -> bytes:
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(Net().eval()), buffer)
    from_torchscript(buffer.getvalue(), DESC)
    return buffer.getvalue()


def rewritten(data: bytes, change: Callable[[str, bytes], bytes | None], **added: bytes) -> bytes:
    """The archive with each record changed, or left out if that is None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w") as target:
        for name in source.namelist():
            held = change(name.partition("/")[2], source.read(name))
            if held is not None:
                target.writestr(name, held)
        for name, held in added.items():
            target.writestr(name, held)
    return buffer.getvalue()


def replaced(data: bytes, record: str, held: bytes | None) -> bytes:
    return rewritten(data, lambda name, old: held if name == record else old)


# ---- files of another kind ----


def saved(value: object, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.randn(1, 3),)), buffer)
    return buffer.getvalue()


OTHERS: dict[str, tuple[Callable[[], bytes], type[MeraError], str]] = {
    "state dict": (lambda: saved(Net().state_dict()), UnsupportedError, "weights or a pickled module"),
    "legacy state dict": (lambda: saved({"a": torch.ones(2)}, legacy=True), UnsupportedError, "a pickle"),
    "pickle": (lambda: pickle.dumps({"a": 1}), UnsupportedError, "a pickle"),
    "pt2": (exported, UnsupportedError, "a pt2 model: use mera_torch.load_model"),
    "text": (lambda: b"hello world, this is no model", CorruptFileError, "is no"),
    "empty": (lambda: b"", CorruptFileError, "is no"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_another_kind_say_what_they_are(kind: str) -> None:
    make, error, why = OTHERS[kind]
    with pytest.raises(error, match=why):
        from_torchscript(make(), DESC)


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match="does not exist"):
        from_torchscript(tmp_path / "missing.pt", DESC)
    with pytest.raises(InvalidModelError, match=r"mera_torch\.quantize"):
        from_torchscript(Net(), DESC)
    with pytest.raises(InvalidModelError, match="got int"):
        from_torchscript(7, DESC)


def test_load_model_tells_torchscript_by_content(data: bytes) -> None:
    assert load_model(data, input_desc=DESC).info.format == "torchscript"


# ---- damaged and hostile archives ----


def test_every_truncation_is_an_error(data: bytes) -> None:
    for length in range(0, len(data) - 1, 97):
        with pytest.raises(MeraError):
            from_torchscript(data[:length], DESC)


@pytest.mark.parametrize("record", ["constants.pkl", "version", "data/0", "code/__torch__.py"])
def test_missing_records(data: bytes, record: str) -> None:
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    found = next(n.partition("/")[2] for n in names if n.partition("/")[2].startswith(record.partition(".py")[0]))
    with pytest.raises(MeraError):
        from_torchscript(replaced(data, found, None), DESC)


def test_paths_that_leave_the_folder(data: bytes) -> None:
    root = zipfile.ZipFile(io.BytesIO(data)).namelist()[0].partition("/")[0]
    with pytest.raises(CorruptFileError, match="leaves its folder"):
        from_torchscript(rewritten(data, lambda _, held: held, **{f"{root}/../../etc/passwd": b"x"}), DESC)


def test_bombs(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr(f"{name.partition('/')[0]}/data/bomb", bytes(1 << 22))
    monkeypatch.setattr(archive, "EXPANDED", 1 << 20)
    with pytest.raises(CorruptFileError, match="are packed into"):
        from_torchscript(buffer.getvalue(), DESC)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (b"class X(Module):\n  def forward(self\n", "no TorchScript program"),
        (b"x = " + b"(" * 5000 + b"1" + b")" * 5000, "no TorchScript program|levels deep"),
        (b"x = " + b"-" * 3000 + b"1", "no TorchScript program|levels deep"),
        (b"x = " + b"+".join([b"1"] * 500), "levels deep"),
        (b"\xff\xfe", "no TorchScript program"),
    ],
)
def test_programs_that_are_none(data: bytes, code: bytes, why: str) -> None:
    def change(name: str, held: bytes) -> bytes:
        return code if name.startswith("code/") and name.endswith(".py") else held

    with pytest.raises(CorruptFileError, match=why):
        from_torchscript(rewritten(data, change), DESC)


def test_weights_that_are_too_short(data: bytes) -> None:
    with pytest.raises(CorruptFileError, match="tensor record '0' needs"):
        from_torchscript(rewritten(data, lambda name, held: held[:4] if name == "data/0" else held), DESC)


# ---- pickles ----


def unicode(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


STORAGE = (
    b"(" + unicode("storage") + b"ctorch\nFloatStorage\n" + unicode("0") + unicode("cpu") + number(8) + b"tQ"
)  # fmt: skip


def tensor(sizes: list[int], strides: list[int], offset: int = 0) -> bytes:
    shape, steps = (b"(" + b"".join(map(number, values)) + b"t" for values in (sizes, strides))
    empty = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + number(offset) + shape + steps + b"\x89" + empty + b"tR"


PICKLES = {
    "calls the system": (b"cos\nsystem\n" + unicode("true") + b"\x85R", "names 'os system'"),
    "too deep": (b")" + b"\x85" * 500, "nested"),
    "too large when followed": (b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60)),
                                "values"),
    "memo out of reach": (b")r\xff\xff\xff\x7f", "memo"),
    "unknown memo": (b"h\x07", "memo 7 is not set"),
    "too little": (b"\x86", "missing"),
    "left over": (b"))", "left over"),
    "no dict": (b"(" + unicode("a") + unicode("b") + b"u", "missing"),
    "no key": (b"}(" + unicode("a") + b"u", "one for each value"),
    "other operation": (b"I1\n", "does not write"),
    "tensor beyond its storage": (tensor([3, 3], [3, 1]), "reaches element 8 of a storage of 8"),
    "negative stride": (tensor([2], [-1]), "strides"),
    "offset": (tensor([2], [1], 7), "reaches element 8"),
    "storage larger than its record": (tensor([1], [1]).replace(number(8), number(1 << 30)), "needs 4294967296 bytes"),
    "other protocol": (b"\x80\x04)", "protocol 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_hostile_pickles(name: str, data: bytes) -> None:
    held, why = PICKLES[name]
    with pytest.raises(CorruptFileError, match=why):
        check_pickle(b"\x80\x02" + held + b".", "data.pkl", {"0": 32})
    with pytest.raises(CorruptFileError, match="constants.pkl"):
        from_torchscript(replaced(data, "constants.pkl", b"\x80\x02" + held + b"."), DESC)


def test_a_good_tensor_passes() -> None:
    check_pickle(b"\x80\x02" + tensor([2, 4], [4, 1]) + b".", "data.pkl", {"0": 32})


# ---- mutations ----


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_flipped_bytes_give_a_model_or_an_error(data: bytes, draw: st.DataObject) -> None:
    """Of the file, or of one record with the checksum put right."""
    names = [n for n in zipfile.ZipFile(io.BytesIO(data)).namelist() if n.endswith((".pkl", ".py"))]
    record = draw.draw(st.sampled_from([None, *names]))

    def flip(held: bytes) -> bytes:
        changed = bytearray(held)
        for _ in range(draw.draw(st.integers(1, 4))):
            changed[draw.draw(st.integers(0, len(held) - 1))] = draw.draw(st.integers(0, 255))
        return bytes(changed)

    if record is None:
        mutated = flip(data)
    else:
        mutated = rewritten(data, lambda name, held: flip(held) if record.endswith(f"/{name}") else held)
    try:
        from_torchscript(mutated, DESC)
    except MeraError:
        pass
