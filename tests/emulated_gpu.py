"""Mixed precision of a GPU on a CPU, as far as that goes.

Real are Paddle's `auto_cast`, `decorate` and `GradScaler`, which refuse a CPU and are told that it is a GPU; the type
of every tensor that an operator can take on a CPU in half precision (parameters, buffers, gradients, what is stacked);
and all of ppgfl. Emulated are the kernels that a CPU lacks: Paddle itself lets an operator without one compute in
float32, so that values come out finer than on a GPU; the optimizer's kernels for half precision are written out below.
"""
import sys

import paddle

from ppgfl.system import framework


class Tracer:
    """Paddle's, except that it believes to be on a GPU."""

    def __init__(self, real):
        object.__setattr__(self, "real", real)

    def __getattr__(self, name):
        return self if name == "_expected_place" else getattr(self.real, name)

    def __setattr__(self, name, value):
        setattr(self.real, name, value)

    def is_gpu_place(self):
        return True

    is_xpu_place = is_custom_place = lambda self: False


def momentum(real):
    def momentum_(param, grad, velocity, rate, master, *more):
        if master is None:
            return real(param, grad, velocity, rate, master, *more)
        assert param.dtype == paddle.float16
        assert master.dtype == velocity.dtype == paddle.float32
        *arguments, _, rescale = more  # multi_precision is the last but one
        real(master, grad.astype("float32"), velocity, rate, None, *arguments, False, rescale)
        param.set_value(master.astype("float16"))
        return None

    return momentum_


def in_float32(real):
    """A kernel that gradient clipping needs: of tensors in half precision it computes in float32."""
    def kernel(*tensors):
        if tensors[0].dtype != paddle.float16:
            return real(*tensors)
        full = [tensor.astype("float32") for tensor in tensors]
        result = real(*full)
        if result is full[0]:
            tensors[0].set_value(result.astype(tensors[0].dtype))
            return tensors[0]
        return result.astype(tensors[0].dtype)

    return kernel


def check_finite_and_unscale(real):
    def check(grads, scale, outs, found):
        full = [grad.astype("float32") for grad in grads]
        results = real(full, scale, full, found)
        for out, grad in zip(outs, full):
            out.set_value(grad.astype(out.dtype))
        return results

    return check


def switch_on(monkeypatch):
    for name in ("auto_cast", "grad_scaler"):
        module = sys.modules[f"paddle.amp.{name}"]
        real = module._dygraph_tracer
        monkeypatch.setattr(module, "_dygraph_tracer", lambda real=real: Tracer(real()))
    monkeypatch.setattr(sys.modules["paddle.amp.auto_cast"], "_is_gpu_float16_supported", lambda: True)
    monkeypatch.setattr(framework, "on_gpu", lambda: True)
    monkeypatch.setattr(paddle._C_ops, "momentum_", momentum(paddle._C_ops.momentum_))
    for name in ("squared_l2_norm", "multiply", "multiply_"):
        monkeypatch.setattr(paddle._C_ops, name, in_float32(getattr(paddle._C_ops, name)))
    monkeypatch.setattr(paddle._legacy_C_ops, "check_finite_and_unscale",
                        check_finite_and_unscale(paddle._legacy_C_ops.check_finite_and_unscale))
