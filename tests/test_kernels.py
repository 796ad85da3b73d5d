"""Every kernel set gives the generic set's bytes, and reads and writes nothing outside its operands."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cffi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mera_torch import oracle

CSRC = Path(__file__).resolve().parent.parent / "csrc"
PAGE = mmap.PAGESIZE


def declarations() -> str:
    """The structs of kernels.h and quantmath.h, as cffi's parser reads them."""
    text = (CSRC / "quantmath.h").read_text() + (CSRC / "kernels.h").read_text()
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    names = ("rescale", "add_rescale", "mera_kernels")
    structs = [re.search(rf"typedef struct {name} {{.*?}} {name};", text, re.DOTALL) for name in names]
    found = "".join(match.group() for match in structs if match)
    return (
        found
        + """
        const mera_kernels *const *kernels_all(void);
        bool kernels_supported(const mera_kernels *kernels);
        """
    )


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> tuple[cffi.FFI, Any]:
    """The kernels alone, built as a library."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    sources = [str(path) for path in sorted(CSRC.glob("kernels*.c"))]
    command = [*compiler, "-std=c11", "-O2", "-fPIC", "-shared", *sources, "-lm", "-o", str(library)]
    subprocess.run(command, check=True)
    ffi = cffi.FFI()
    ffi.cdef(declarations())
    return ffi, ffi.dlopen(str(library))


class Guarded:
    """Buffers whose last byte is followed by a page that may not be touched."""

    def __init__(self, ffi: cffi.FFI) -> None:
        self.ffi = ffi
        self.maps: list[mmap.mmap] = []

    def __call__(self, kind: str, array: np.ndarray, align: int = 1) -> Any:
        """A pointer to a copy of the array that ends at the guard page (or up to align - 1 bytes before it)."""
        data = np.ascontiguousarray(array).tobytes()
        pages = len(data) // PAGE + 2
        memory = mmap.mmap(-1, (pages + 1) * PAGE)
        self.maps.append(memory)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(base + pages * PAGE), ctypes.c_size_t(PAGE), 0) == 0
        start = (pages * PAGE - len(data)) // align * align
        ctypes.memmove(base + start, data, len(data))
        return self.ffi.cast(f"{kind} *", base + start)


Run = Callable[[Any, Guarded], np.ndarray]


def check(core: tuple[cffi.FFI, Any], run: Run) -> np.ndarray:
    """Runs with every supported kernel set; all must agree. The result."""
    ffi, lib = core
    results, sets, i = {}, lib.kernels_all(), 0
    while sets[i] != ffi.NULL:
        if lib.kernels_supported(sets[i]):
            results[ffi.string(sets[i].name).decode()] = run(sets[i], Guarded(ffi))
        i += 1
    generic = results["generic"]
    for name, result in results.items():
        np.testing.assert_array_equal(result, generic, err_msg=name)
    return generic


def read(ffi: cffi.FFI, pointer: Any, count: int, dtype: type) -> np.ndarray:
    return np.frombuffer(ffi.buffer(pointer, count * np.dtype(dtype).itemsize), dtype).copy()


def bytes_of(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random int8, the extremes often among them."""
    extreme = rng.choice(np.array([-128, 127], np.int8), shape)
    return np.where(rng.random(shape) < 0.3, extreme, rng.integers(-128, 128, shape)).astype(np.int8)


def exact(product: np.ndarray) -> np.ndarray:
    return oracle.wrap_int32(product).astype(np.int32)


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 150), st.integers(1, 90), st.booleans(), st.integers(0, 3), SEEDS)
def test_gemm(core: Any, m: int, n: int, depth: int, accumulate: bool, gap: int, seed: int) -> None:
    rng, ffi = np.random.default_rng(seed), core[0]
    a, b = bytes_of(rng, m, depth + gap), bytes_of(rng, n, depth + gap)
    c = rng.integers(-(2**31), 2**31, (m, n), np.int32)

    def run(kernels: Any, guarded: Guarded) -> np.ndarray:
        pa = guarded("int8_t", a.ravel()[: a.size - gap])
        pb = guarded("int8_t", b.ravel()[: b.size - gap])
        pc = guarded("int32_t", c)
        kernels.gemm_s8(m, n, depth, pa, depth + gap, pb, depth + gap, pc, n, accumulate)
        return read(ffi, pc, m * n, np.int32)

    product = a[:, :depth].astype(np.int64) @ b[:, :depth].astype(np.int64).T
    found = check(core, run)
    np.testing.assert_array_equal(found.reshape(m, n), exact(product + (c if accumulate else 0)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 150), st.integers(1, 90), st.integers(0, 3), SEEDS)
def test_gemm_packed(core: Any, m: int, n: int, depth: int, gap: int, seed: int) -> None:
    rng, ffi = np.random.default_rng(seed), core[0]
    a, b = bytes_of(rng, m, depth + gap), bytes_of(rng, n, depth)

    def run(kernels: Any, guarded: Guarded) -> np.ndarray:
        size = kernels.packed_bytes(n, depth)
        packed = guarded("uint8_t", np.full(size, 0xA5, np.uint8), align=64)
        kernels.pack(n, depth, guarded("int8_t", b), depth, packed)
        pa, pc = guarded("int8_t", a.ravel()[: a.size - gap]), guarded("int32_t", np.zeros((m, n), np.int32))
        kernels.gemm_packed(m, n, depth, pa, depth + gap, packed, pc, n)
        if n > 64:  # the documented beginning of a later panel
            later = packed + kernels.packed_bytes(64, depth)
            kernels.gemm_packed(m, n - 64, depth, pa, depth + gap, later, pc + 64, n)
        return read(ffi, pc, m * n, np.int32)

    found = check(core, run)
    np.testing.assert_array_equal(found.reshape(m, n), exact(a[:, :depth].astype(np.int64) @ b.astype(np.int64).T))


@pytest.mark.parametrize("m, n, depth", [(5, 17, 1500), (130, 3, 1025), (49, 66, 513), (1, 1, 4097)])
def test_gemm_of_great_depth(core: Any, m: int, n: int, depth: int) -> None:
    test_gemm.hypothesis.inner_test(core, m, n, depth, False, 0, 1)
    test_gemm_packed.hypothesis.inner_test(core, m, n, depth, 0, 2)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 70), st.integers(-128, 127), SEEDS)
def test_requantize(core: Any, n: int, zero: int, seed: int) -> None:
    rng, ffi = np.random.default_rng(seed), core[0]
    bits = rng.integers(1, 33, (2, n))  # operands of every magnitude
    acc, bias = (rng.integers(-(2**31), 2**31, (2, n)) >> (32 - bits)).astype(np.int32)
    multiplier = np.where(rng.random(n) < 0.1, 0, rng.integers(2**30, 2**31, n)).astype(np.int32)
    multiplier[rng.random(n) < 0.1] = 2**30
    shift = rng.integers(-31, 31, n).astype(np.int8)
    low, high = sorted(rng.integers(-128, 128, 2).tolist()) if seed % 2 else (-128, 127)

    def run(kernels: Any, guarded: Guarded) -> np.ndarray:
        q = guarded("int8_t", np.zeros(n, np.int8))
        words = [guarded("int32_t", x) for x in (acc, bias, multiplier)]
        kernels.requantize(n, *words, guarded("int8_t", shift), zero, low, high, q)
        return read(ffi, q, n, np.int8)

    found = check(core, run)
    total = oracle.wrap_int32(acc.astype(np.int64) + bias)
    scaled = oracle.apply_scale(total, multiplier.astype(np.int64), shift.astype(np.int64))
    np.testing.assert_array_equal(found, np.clip(oracle.wrap_int32(scaled + zero), low, high))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100), st.integers(1, 12), SEEDS)
def test_depthwise(core: Any, n: int, taps: int, seed: int) -> None:
    rng, ffi = np.random.default_rng(seed), core[0]
    x, w = bytes_of(rng, taps, n), bytes_of(rng, taps, n)
    start = rng.integers(-(2**31), 2**31, n, np.int32)

    def run(kernels: Any, guarded: Guarded) -> np.ndarray:
        rows = [guarded("int8_t", row) for row in x]
        at_once, by_tap = guarded("int32_t", start), guarded("int32_t", start)
        kernels.depthwise_s8(n, taps, ffi.new("int8_t *[]", rows), guarded("int8_t", w), n, at_once)
        for row, weights in zip(rows, w, strict=True):
            kernels.multiply_add_s8(n, row, guarded("int8_t", weights), by_tap)
        return np.concatenate([read(ffi, at_once, n, np.int32), read(ffi, by_tap, n, np.int32)])

    found = check(core, run)
    sums = (x.astype(np.int64) * w).sum(0)
    np.testing.assert_array_equal(found, np.concatenate([sums, exact(sums + start)]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.sampled_from([1, -1]), SEEDS)
def test_add_and_mul(core: Any, n: int, sign: int, seed: int) -> None:
    rng, ffi = np.random.default_rng(seed), core[0]
    a, b = bytes_of(rng, n), bytes_of(rng, n)
    za, zb, zy = rng.integers(-128, 128, 3).tolist()
    low, high = (-128, 127) if seed % 2 else sorted(rng.integers(-128, 128, 2).tolist())
    scales = [float(np.float32(2.0 ** rng.uniform(-8, 0))) for _ in range(3)]
    twice = 2 * max(scales[:2])
    reals = (scales[0] / twice, scales[1] / twice, twice / (2**20 * scales[2]))
    ra, rb, ry = ({"multiplier": int(m), "shift": int(s)} for m, s in map(oracle.quantize_multiplier, reals))
    product_m, product_s = (int(x) for x in oracle.quantize_multiplier(scales[0] * scales[1] / scales[2]))

    def run(kernels: Any, guarded: Guarded) -> np.ndarray:
        pa, pb = guarded("int8_t", a), guarded("int8_t", b)
        added, multiplied = guarded("int8_t", a), guarded("int8_t", a)
        r = ffi.new("add_rescale *", {"a": ra, "b": rb, "y": ry})
        kernels.add_s8(n, pa, pb, za, zb, zy, sign, r, low, high, added)
        kernels.mul_s8(n, pa, pb, za, zb, zy, {"multiplier": product_m, "shift": product_s}, low, high, multiplied)
        return np.concatenate([read(ffi, added, n, np.int8), read(ffi, multiplied, n, np.int8)])

    found = check(core, run)
    x, y = a.astype(np.int64) - za, b.astype(np.int64) - zb
    total = oracle.rescale(x << 20, reals[0]) + sign * oracle.rescale(y << 20, reals[1])
    added = np.clip(oracle.rescale(total, reals[2]) + zy, low, high)
    multiplied = np.clip(oracle.rescale(x * y, scales[0] * scales[1] / scales[2]) + zy, low, high)
    np.testing.assert_array_equal(found, np.concatenate([added, multiplied]))
