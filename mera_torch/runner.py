"""Running what was deployed, as MERA does it: numpy arrays set by name or order, run(), numpy arrays out.

Needs numpy alone where every operator runs without PyTorch; see docs/mera.md.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .engines import Engine, open_engine, target_of
from .errors import ConfigError, InvalidModelError, StateError, UnsupportedError, nearest
from .project_folder import ProjectFolder, is_deployment, is_project
from .samples import Spec
from .targets import DeviceTarget, Target

Array = npt.NDArray[Any]


def load_mera_deployment(path: str | os.PathLike[str], target: Target | str | None = None) -> MeraDeployment:
    """What was deployed: from a project, from one of its build folders, or from a deployment of mera_torch.export.

    target: which one of a project; may be left out where there is one. A deployment that stands alone runs on the
    target it was built for, or on the one given.

    Raises InvalidModelError if nothing was deployed there, StateError naming what is built if the project is not built
    for the target, UnsupportedError for targets that do not exist yet, CorruptFileError, ConfigError.
    """
    folder = Path(path)
    wanted = None if target is None else Target(target).check_available()
    if is_project(folder):
        project = ProjectFolder(folder)
        built = project.built(wanted)
        return MeraDeployment(project.build_folder(built), built, project)
    if not is_deployment(folder):
        raise InvalidModelError(
            f"{os.fspath(path)!r} is neither a project nor a deployment: it holds no project.json and no "
            "deployment.json; Deployer.deploy or mera_torch.export makes one"
        )
    return MeraDeployment(folder, wanted)


class MeraDeployment:
    """What was deployed for one target. path: its folder; project: the project it belongs to, if any."""

    def __init__(self, path: Path, target: Target | None, project: ProjectFolder | None = None) -> None:
        self.path, self.project = path, project
        own = target_of(path)
        self.target = target or own
        if (own is Target.Interpreter) != (self.target is Target.Interpreter):
            raise StateError(f"{str(path)!r} is built for {own}, not for {self.target}: deploy it for that target")

    def get_runner(
        self,
        device_target: DeviceTarget | str | int = DeviceTarget.SAKURA_1,
        device_ids: int | str | Sequence[int | str] | None = None,
        dynamic_output_list: Sequence[int | str] | None = None,
        *,
        profiling_mode: bool = False,
        tvm_debug_mode: bool = False,
        tvm_debug_dump_path: str | os.PathLike[str] | None = None,
    ) -> MeraModelRunner:
        """A runner.

        device_target: the board that MERA would take for target IP; any board that is there runs any deployment of its
        platform. device_ids: which devices, for target IP: numbers or addresses of mera_torch.device.discover().
        dynamic_output_list: outputs (names or indices) of which get_output_row will be asked. profiling_mode, or MERA's
        tvm_debug_mode: time each operator, on the target Interpreter. tvm_debug_dump_path: a folder for the profiling
        table of each run.

        Raises UnsupportedError (an operator needs PyTorch, which is not installed), CorruptFileError,
        DeviceAbsentError, ConfigError.
        """
        DeviceTarget(device_target)
        ids = _device_ids(device_ids, self.target)
        engine = open_engine(self.path, self.target, ids)
        dump = None if tvm_debug_dump_path is None else Path(tvm_debug_dump_path)
        runner = MeraModelRunner(engine, profiling_mode or tvm_debug_mode or dump is not None, dump)
        for output in dynamic_output_list or ():
            runner.output_index(output)
        return runner

    def __repr__(self) -> str:
        return f"MeraDeployment({str(self.path)!r}, {self.target})"


class MeraModelRunner:
    """Runs a deployment: runner.set_input(x).run().get_outputs(). One thread at a time."""

    def __init__(self, engine: Engine, profiling: bool = False, dump: Path | None = None) -> None:
        self._engine, self._profiling, self._dump = engine, profiling, dump
        self._specs = {spec.name: spec for spec in engine.inputs}
        self._memory = dict(zip(self._specs, engine.memory, strict=True))
        self._given: set[str] = set()
        self._outputs: list[Array] | None = None
        self._elapsed_us = 0
        self._runs = 0
        if profiling and not engine.profiles:
            raise UnsupportedError(
                f"profiling_mode: target {engine.target} has no clock for its operators, Interpreter has; "
                "get_runtime_metrics() gives the Simulator's cycles, layer by layer"
            )

    # ---- inputs ----

    def set_input(self, data: Array | Mapping[str, Array] | Sequence[Array]) -> MeraModelRunner:
        """Copies the inputs: one array, a list in order, or a dict by name.

        Arrays have the shape and dtype of the input; any floating-point dtype is converted to a floating-point input's.
        Raises InvalidModelError for anything else: wrong shape, dtype, name, order or count.
        """
        self._copy(self._named(data))
        return self

    def set_named_input(self, name: str, data: Array) -> MeraModelRunner:
        """Copies one input."""
        self._copy({self._input(name).name: data})
        return self

    def get_input_handle(self, name: str, as_numpy: bool = True, dtype: Any = None) -> Any:
        """The array that run() reads: what is written into it is the input, without a copy.

        as_numpy: False gives a memoryview. dtype: view its bytes as that dtype (default: the input's).
        """
        known = self._input(name).name
        self._given.add(known)
        return _view(self._memory[known], as_numpy, dtype)

    def get_input_names(self) -> list[str]:
        return list(self._specs)

    def get_num_inputs(self) -> int:
        return len(self._specs)

    # ---- running ----

    def run(self) -> MeraModelRunner:
        """Runs the model on the inputs that are set. Raises StateError if one is not."""
        missing = [name for name in self._specs if name not in self._given]
        if missing:
            raise StateError(f"run: no data for input {', '.join(map(repr, missing))}: call set_input first")
        begin = time.perf_counter_ns()
        self._outputs = self._engine.run(self._profiling)
        self._elapsed_us = (time.perf_counter_ns() - begin) // 1000
        self._runs += 1
        if self._dump is not None:
            self._dump_profile(self._dump)
        return self

    # ---- outputs ----

    def get_output(self, output_idx: int | str = 0) -> Array:
        """One output of the last run, by index or name; yours to keep. Raises StateError before the first run,
        InvalidModelError for an output that there is not."""
        found: Array = self._result(output_idx).copy()
        return found

    def get_outputs(self) -> list[Array]:
        """All outputs of the last run, in order; yours to keep."""
        return [array.copy() for array in self._results()]

    def get_outputs_dict(self) -> dict[str, Array]:
        """All outputs of the last run, by name; yours to keep."""
        return dict(zip(self.get_output_names(), self.get_outputs(), strict=True))

    def get_output_row(self, row_idx: int, output_idx: int | str = 0) -> Array:
        """One row of an output: with all dimensions but the last as rows, the row_idx-th one."""
        found = self._result(output_idx)
        rows = found.reshape(-1, found.shape[-1]) if found.ndim else found.reshape(1, 1)
        if not isinstance(row_idx, int | np.integer) or not -len(rows) <= row_idx < len(rows):
            raise InvalidModelError(f"row_idx must be 0 to {len(rows) - 1}, got {row_idx!r}")
        return np.array(rows[row_idx])

    def get_output_handle(self, name: str, as_numpy: bool = True, dtype: Any = None) -> Any:
        """The array that the last run wrote, without a copy, and that the next one may write; see get_input_handle."""
        return _view(self._result(name), as_numpy, dtype)

    def get_output_names(self) -> list[str]:
        return [spec.name for spec in self._engine.outputs]

    def get_num_outputs(self) -> int:
        return len(self._engine.outputs)

    def output_index(self, output: int | str) -> int:
        """The index of an output given by index or name. Raises InvalidModelError if there is none."""
        names = self.get_output_names()
        if isinstance(output, str):
            if output not in names:
                raise InvalidModelError(f"there is no output {output!r}: {nearest(output, names)}")
            return names.index(output)
        if not isinstance(output, int | np.integer) or isinstance(output, bool) or not 0 <= output < len(names):
            raise InvalidModelError(f"the model has {len(names)} outputs (0 to {len(names) - 1}), got {output!r}")
        return int(output)

    # ---- what it took ----

    def get_runtime_metrics(self) -> list[dict[str, Any]]:
        """What the last run took, as a list of one dict. Raises StateError before the first run.

        elapsed_latency: microseconds on the host's clock, everything included. Simulator and IP: also sim_time_us
        (cycles at the platform's clock), freq_mhz and what mera_torch.Runner.metrics gives.
        """
        self._results()
        return [{"elapsed_latency": self._elapsed_us, **self._engine.metrics()}]

    def get_power_metrics(self) -> Any:
        """An estimate of the power on the platform: see mera_torch.energy. Raises StateError before the first run."""
        self._results()
        return self._engine.power()

    def profile(self) -> list[dict[str, Any]]:
        """For each operator of the last run: node, op, module, microseconds; of a runner with profiling_mode=True."""
        if not self._profiling:
            raise StateError("profile: call get_runner(profiling_mode=True)")
        self._results()
        return self._engine.profile()

    def profiling_table(self) -> str:
        """profile() as text, the slowest operator first."""
        rows = sorted(self.profile(), key=lambda row: -row["microseconds"])
        total = sum(row["microseconds"] for row in rows) or 1.0
        lines = [f"{'us':>10}  {'share':>6}  {'operator':40}  {'module':30}  node"]
        for row in rows:
            share = row["microseconds"] / total
            lines.append(
                f"{row['microseconds']:10.1f}  {share:6.1%}  {row['op']:40}  {row['module']:30}  {row['node']}"
            )
        return "\n".join(lines)

    def display_profiling_table(self) -> None:
        """Prints profiling_table()."""
        print(self.profiling_table())

    # ---- within ----

    def _results(self) -> list[Array]:
        if self._outputs is None:
            raise StateError("there are no outputs yet: call set_input and run first")
        return self._outputs

    def _result(self, output: int | str) -> Array:
        index = self.output_index(output)
        return self._results()[index]

    def _input(self, name: Any) -> Spec:
        if name not in self._specs:
            raise InvalidModelError(f"there is no input {name!r}: {nearest(str(name), self._specs)}")
        return self._specs[name]

    def _named(self, data: Any) -> dict[str, Any]:
        names = list(self._specs)
        if isinstance(data, Mapping):
            for name in data:
                self._input(name)
            missing = [name for name in names if name not in data]
            if missing:
                raise InvalidModelError(f"set_input: input {', '.join(map(repr, missing))} is missing")
            return dict(data)
        given = list(data) if isinstance(data, list | tuple) else [data]
        if len(given) != len(names):
            wanted = ", ".join(map(str, self._specs.values()))
            raise InvalidModelError(f"set_input: the model takes {len(names)} inputs ({wanted}), got {len(given)}")
        return dict(zip(names, given, strict=True))

    def _copy(self, data: Mapping[str, Any]) -> None:
        """All or, if one does not fit, none."""
        checked = {name: self._checked(self._specs[name], value) for name, value in data.items()}
        for name, array in checked.items():
            np.copyto(self._memory[name], array, casting="same_kind")
        self._given.update(checked)

    def _checked(self, spec: Spec, value: Any) -> Array:
        if not isinstance(value, np.ndarray):
            if not hasattr(value, "__array__"):
                raise InvalidModelError(f"input {spec} must be a numpy array, got {type(value).__name__}")
            value = np.asarray(value)
        got = f"{value.dtype}{list(value.shape)}"
        if value.shape != spec.shape:
            fits = [s.name for s in self._specs.values() if s.name != spec.name and s.shape == value.shape]
            hint = f"; that is the shape of {fits[0]!r}: give the inputs in order, or by name" if fits else ""
            raise InvalidModelError(f"input {spec} must have shape {list(spec.shape)}, got {got}{hint}")
        floats = value.dtype.kind == "f" and np.dtype(spec.dtype).kind == "f"
        if value.dtype != spec.dtype and not floats:
            raise InvalidModelError(f"input {spec} must have dtype {spec.dtype}, got {got}: use array.astype")
        array: Array = value
        return array

    def _dump_profile(self, folder: Path) -> None:
        from .atomic import atomic_file, storage_error

        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from error
        with atomic_file(folder / f"profile_{self._runs}.txt") as path:
            path.write_text(self.profiling_table() + "\n", encoding="utf-8")


MeraTvmDeployment = MeraTvmPrjDeployment = MeraDeployment
MeraTvmModelRunner = MeraModelRunner


def _device_ids(ids: Any, target: Target) -> list[int | str] | None:
    if ids is None:
        return None
    found = list(ids) if isinstance(ids, list | tuple) else [ids]
    if not found or not all(i if isinstance(i, str) else _is_index(i) for i in found):
        raise ConfigError(f"device_ids must be the number or address of a device, or a list of such, got {ids!r}")
    if target is not Target.IP:
        raise ConfigError(f"device_ids is for target IP, this deployment is for {target}")
    return [i if isinstance(i, str) else int(i) for i in found]


def _is_index(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0


def _view(array: Array, as_numpy: bool, dtype: Any) -> Any:
    if dtype is not None and np.dtype(dtype) != array.dtype:
        try:
            array = array.view(dtype)
        except (TypeError, ValueError) as error:
            raise InvalidModelError(f"{array.dtype}{list(array.shape)} cannot be viewed as {dtype}: {error}") from None
    return array if as_numpy else array.data
