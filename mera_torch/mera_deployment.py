"""Deployments and runners under MERA's name of their module."""

from .runner import (
    MeraDeployment,
    MeraModelRunner,
    MeraTvmDeployment,
    MeraTvmModelRunner,
    MeraTvmPrjDeployment,
    load_mera_deployment,
)
from .targets import DeviceTarget

__all__ = [
    "DeviceTarget",
    "MeraDeployment",
    "MeraModelRunner",
    "MeraTvmDeployment",
    "MeraTvmModelRunner",
    "MeraTvmPrjDeployment",
    "load_mera_deployment",
]
