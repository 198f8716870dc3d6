"""The launches, with a stand-in for the driver's library."""

import ctypes

import pytest
import torch

from mambabyte.ops.cpu.build import KernelUnavailable
from mambabyte.ops.cuda import launch


class Driver:
    """Answers as libcuda does; a function in `failures` fails with that code."""

    def __init__(self, **failures):
        self.failures, self.calls = failures, []

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, arguments))
            if name == "cuGetErrorString":
                arguments[1]._obj.value = b"out of order"
            elif name == "cuModuleGetGlobal_v2":
                if arguments[3] == b"scan_shared":
                    arguments[1]._obj.value = 5000
                else:
                    return 500
            return self.failures.get(name, 0)

        return call

    def named(self, name):
        return [arguments for called, arguments in self.calls if called == name]


class Values(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int64)]


@pytest.fixture
def module(monkeypatch):
    """module(failures) -> a module on that driver, and the driver."""
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 77}))

    def load(**failures):
        driver = Driver(**failures)
        monkeypatch.setattr(launch, "_driver", lambda: driver)
        return launch.Module(b"cubin", torch.device("cuda", 1)), driver

    return load


def test_a_kernel_is_launched_with_its_shared_memory_on_the_current_stream(module):
    loaded, driver = module()
    assert driver.named("cuDeviceGet")[0][1] == 1
    values = Values(9)
    for _ in range(2):
        loaded.launch("scan", (3, 2, 1), 256, values)
    _kernel, *grid, shared, stream, parameters, extra = driver.named("cuLaunchKernel")[1]
    assert grid == [3, 2, 1, 256, 1, 1] and shared == 16 * 5000 and stream.value == 77 and extra is None
    assert Values.from_address(parameters[0]).number == 9 and parameters[0] == ctypes.addressof(values)
    assert [values[1:] for values in driver.named("cuFuncSetAttribute")] == [(8, 16 * 5000), (9, 100)]
    assert len(driver.named("cuCtxPushCurrent_v2")) == len(driver.named("cuCtxPopCurrent_v2"))


def test_sizes_are_those_of_variables(module):
    loaded, driver = module()
    assert [loaded.size(name) for name in ("scan_shared", "scan_shared", "other")] == [5000, 5000, 0]
    assert len(driver.named("cuModuleGetGlobal_v2")) == 2


@pytest.mark.parametrize("name", ["cuDevicePrimaryCtxRetain", "cuModuleLoadData"])
def test_a_module_that_the_driver_refuses_is_one_sentence(module, name):
    with pytest.raises(KernelUnavailable, match=f"^{name} failed: out of order$"):
        module(**{name: 209})


@pytest.mark.parametrize("name", ["cuFuncSetAttribute", "cuLaunchKernel"])
def test_a_launch_that_the_driver_refuses_is_one_sentence(module, name):
    loaded, driver = module(**{name: 1})
    with pytest.raises(KernelUnavailable, match=f"^{name} failed: out of order$"):
        loaded.launch("scan", (1, 1, 1), 256, Values(9))
    assert len(driver.named("cuCtxPushCurrent_v2")) == len(driver.named("cuCtxPopCurrent_v2"))


def test_a_kernel_that_is_missing_is_named(module):
    loaded, _ = module(cuModuleGetFunction=500)
    with pytest.raises(KernelUnavailable, match="no kernel scan"):
        loaded.launch("scan", (1, 1, 1), 256, Values(9))


@pytest.mark.parametrize(
    ("device", "capability", "driver", "reason"),
    [
        (False, (9, 0), Driver(), "no CUDA device"),
        (True, (7, 5), Driver(), "compute capability 7.5 is below 8.0"),
        (True, (9, 0), "the CUDA driver's library cannot be loaded (x)", "the CUDA driver's library"),
        (True, (9, 0), Driver(), "compute capability 9.0"),
    ],
    ids=["no device", "old", "no driver", "usable"],
)
def test_availability_and_its_reason(monkeypatch, device, capability, driver, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(launch, "_driver", lambda: driver)
    usable, said = launch.available()
    assert usable == (reason == "compute capability 9.0") and said.startswith(reason)
