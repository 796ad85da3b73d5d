"""from_ctypes.py LIBRARY CASE: the shared library through another language's foreign function interface, and nothing of
mera_torch: a run gives the bytes that are in the case's folder."""

import ctypes
import sys
from pathlib import Path

import numpy as np

library, case = ctypes.CDLL(sys.argv[1]), Path(sys.argv[2])
pointer, text = ctypes.c_void_p, ctypes.c_char_p
for name, result, *arguments in (
    ("dna_deployment_load", ctypes.c_int, text, ctypes.POINTER(pointer), pointer),
    ("dna_runner_create", ctypes.c_int, pointer, pointer, ctypes.POINTER(pointer), pointer),
    ("dna_request_create", ctypes.c_int, pointer, ctypes.POINTER(pointer), pointer),
    ("dna_request_set_input", ctypes.c_int, pointer, ctypes.c_int32, pointer, ctypes.c_size_t),
    ("dna_request_run", ctypes.c_int, pointer),
    ("dna_request_error", text, pointer),
    ("dna_request_output_handle", pointer, pointer, ctypes.c_int32, ctypes.POINTER(ctypes.c_size_t)),
    ("dna_request_free", None, pointer),
    ("dna_runner_free", None, pointer),
    ("dna_deployment_free", None, pointer),
):
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments

deployment, runner, request, size = pointer(), pointer(), pointer(), ctypes.c_size_t()
image, wanted = np.load(case / "input_0.npy"), np.load(case / "output_0.npy")
if (
    library.dna_deployment_load(str(case / "deploy").encode(), deployment, None)
    or library.dna_runner_create(deployment, None, runner, None)
    or library.dna_request_create(runner, request, None)
    or library.dna_request_set_input(request, 0, image.ctypes.data, image.nbytes)
    or library.dna_request_run(request)
):
    sys.exit(f"it failed: {library.dna_request_error(request).decode()}")
output = library.dna_request_output_handle(request, 0, size)
same = ctypes.string_at(output, size.value) == wanted.tobytes()
library.dna_request_free(request)
library.dna_runner_free(runner)
library.dna_deployment_free(deployment)
sys.exit(None if same else "other bytes")
