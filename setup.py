"""Packages and the C core; everything else stands in pyproject.toml."""

from setuptools import find_packages, setup

# converters/ stands at the top of the repository and installs as mera_torch.converters, so that no package
# named `converters` lands in a user's site-packages.
packages = [*find_packages(include=["mera_torch", "mera_torch.*"]), "mera_torch.data"]
converters = ["mera_torch." + name for name in find_packages(include=["converters", "converters.*"])]

setup(
    packages=packages + converters,
    package_dir={"mera_torch": "mera_torch", "mera_torch.converters": "converters"},
    cffi_modules=["tools/build_core.py:ffibuilder"],
)
