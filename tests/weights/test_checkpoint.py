import os
import pickle
import pickletools

import numpy as np
import paddle
import pytest

from ppgfl import CheckpointError, load_weights
from ppgfl.model.head import DGQP
from ppgfl.weights.checkpoint import NAME_TABLE, match, read

STATE = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.array([1, 2, 3], np.float32)}


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def linear():
    return paddle.nn.Linear(2, 3)


def values(layer):
    return {name: value.numpy() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("table", [True, False])
def test_the_released_format_loads(tmp_path, protocol, table):
    content = {**STATE, NAME_TABLE: {name: name for name in STATE}} if table else STATE
    write(tmp_path / "w.pdparams", content, protocol)
    layer = linear()
    for path in (tmp_path / "w.pdparams", tmp_path / "w"):  # with and without the ending
        report = load_weights(layer, path)
        assert report.complete
        assert sorted(report.loaded) == ["bias", "weight"]
    for name, value in values(layer).items():
        np.testing.assert_array_equal(value, STATE[name])


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_paddle_saves_loads(tmp_path, protocol):
    source, target = linear(), linear()
    paddle.save(source.state_dict(), str(tmp_path / "w.pdparams"), protocol=protocol)
    paddle.save({"nested": source.state_dict(), "step": 3}, str(tmp_path / "nested.pdopt"), protocol=protocol)
    load_weights(target, tmp_path / "w")
    for name, value in values(target).items():
        np.testing.assert_array_equal(value, values(source)[name])
    from ppgfl.weights import safe_pickle

    nested = safe_pickle.load(tmp_path / "nested.pdopt")
    assert nested["step"] == 3


def test_fortran_order_and_big_endian_arrays_keep_their_values(tmp_path):
    odd = {"weight": np.asfortranarray(STATE["weight"]), "bias": STATE["bias"].astype(">f4")}
    layer = linear()
    load_weights(layer, write(tmp_path / "w.pdparams", odd))
    np.testing.assert_array_equal(values(layer)["weight"], STATE["weight"])
    np.testing.assert_array_equal(values(layer)["bias"], STATE["bias"])


def test_half_precision_files(tmp_path):
    exact = {"weight": np.array([[1, -2.5, 0.125], [3, 0, 1024]], np.float32), "bias": STATE["bias"]}
    as_bfloat16 = {name: (value.view(np.uint32) >> 16).astype(np.uint16) for name, value in exact.items()}
    as_float16 = {name: value.astype(np.float16) for name, value in exact.items()}
    for name, content in (("b", as_bfloat16), ("h", as_float16)):
        layer = linear()
        load_weights(layer, write(tmp_path / f"{name}.pdparams", content))
        for key, value in values(layer).items():
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, exact[key])


def test_a_bfloat16_file_written_by_paddle(tmp_path):
    source = linear()
    state = {name: value.astype("bfloat16") for name, value in source.state_dict().items()}
    paddle.save(state, str(tmp_path / "w.pdparams"))
    target = linear()
    load_weights(target, tmp_path / "w")
    np.testing.assert_allclose(values(target)["weight"], values(source)["weight"], rtol=1e-2)


@pytest.mark.parametrize("bad, dtype", [(np.nan, "float32"), (-np.inf, "float16"), (1e300, "float64")])
def test_weights_that_are_not_finite_are_refused(tmp_path, bad, dtype):
    weight = STATE["weight"].astype(dtype)
    weight[1, 2] = bad
    layer = linear()
    before = values(layer)
    with pytest.raises(CheckpointError, match="'weight': 1 of 6 values are NaN or infinite"):
        load_weights(layer, write(tmp_path / "w.pdparams", {**STATE, "weight": weight}))
    np.testing.assert_array_equal(values(layer)["bias"], before["bias"])


def test_strict_refuses_with_a_table_and_leaves_the_model_alone(tmp_path):
    layer = linear()
    before = values(layer)
    path = write(tmp_path / "w.pdparams", {"weight": np.zeros((3, 3), np.float32), "extra": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match="0 loaded, 1 missing, 1 unused, 1 of another shape") as error:
        load_weights(layer, path)
    report = error.value.report
    assert (report.missing, report.unused) == (["bias"], ["extra"])
    assert report.misshapen == [("weight", [3, 3], [2, 3])]
    for word in ("bias", "extra", "[3, 3] in the file, [2, 3] in the model"):
        assert word in report.table()
    np.testing.assert_array_equal(values(layer)["weight"], before["weight"])


def test_not_strict_loads_what_fits(tmp_path):
    layer = linear()
    path = write(tmp_path / "w.pdparams", {"weight": STATE["weight"], "extra": np.zeros(1, np.float32)})
    report = load_weights(layer, path, strict=False)
    assert report.loaded == ["weight"]
    np.testing.assert_array_equal(values(layer)["weight"], STATE["weight"])


@pytest.mark.parametrize("kept", ["reg_conv", "dgqp_reg_conv"])
def test_either_name_of_a_shared_convolution_is_enough(kept):
    source = DGQP()
    state = {name: value.numpy() for name, value in source.state_dict().items() if name.startswith(kept)}
    target = DGQP()
    report, found = match(target.state_dict(), state)
    assert report.complete
    target.set_state_dict(found)
    np.testing.assert_array_equal(target.reg_conv1.weight.numpy(), source.reg_conv1.weight.numpy())


class Call:
    """Pickles as a call of any function: what a hostile file is made of."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_files():
    mark = "os.system('touch /tmp/ppgfl_was_here')"
    yield "system", pickle.dumps({"w": Call(os.system, "touch ppgfl_was_here")}, protocol=2)
    yield "eval", pickle.dumps({"w": Call(eval, "open('ppgfl_was_here','w')")}, protocol=4)
    yield "exec", pickle.dumps(Call(exec, mark), protocol=2)
    yield "getattr", pickle.dumps(Call(getattr, "text", "upper"), protocol=4)
    yield "import", pickle.dumps(Call(__import__, "os"), protocol=2)
    yield "numpy load", pickle.dumps(Call(np.load, "x.npy"), protocol=2)
    yield "numpy testing", b"cnumpy.testing._private.utils\nruntests\n."
    yield "object array", pickle.dumps({"w": np.array([{}, []], dtype=object)}, protocol=2)
    yield "structured", pickle.dumps({"w": np.zeros(2, dtype=[("a", "f4"), ("b", "f4")])}, protocol=2)
    yield "class instance", pickle.dumps({"w": pytest.approx(1)}, protocol=2)
    yield "inst opcode", b"(S'echo hi'\nios\nsystem\n."
    yield "obj opcode", b"(cos\nsystem\nS'echo hi'\no."
    yield "bytes bomb", b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R."
    yield "dtype attribute", b"\x80\x02cnumpy\ndtype\n}X\x04\x00\x00\x00DATAK\x01sb."
    yield "a bare name", b"\x80\x02}X\x01\x00\x00\x00wcnumpy\ndtype\ns."
    yield "a set", pickle.dumps({"w": {1, 2}}, protocol=4)
    yield "persistent id", b"Pabc\n."
    yield "huge array", (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ\xff\xff\xff\x7f\x85"
                         b"U\x01b\x87R.")


@pytest.mark.parametrize(("name", "data"), evil_files(), ids=lambda x: x if isinstance(x, str) else "")
def test_a_file_that_could_run_code_is_refused_before_any_of_it_runs(tmp_path, monkeypatch, name, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pdparams").write_bytes(data)
    with pytest.raises(CheckpointError, match="refused, since it holds") as error:
        read(tmp_path / "w.pdparams")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ppgfl_was_here").exists()


def test_the_refusal_names_what_was_found(tmp_path):
    write(tmp_path / "w.pdparams", Call(os.system, "true"))
    with pytest.raises(CheckpointError, match=r"a reference to (posix|nt).system"):
        read(tmp_path / "w.pdparams")


def test_the_memo_of_a_file_cannot_claim_memory(tmp_path):
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # LONG_BINPUT 2^31 - 1
    with pytest.raises(CheckpointError, match="no entries"):
        read(tmp_path / "w.pdparams")


def test_shared_containers_do_not_multiply(tmp_path):
    bomb = [np.zeros(4, np.float32)]
    for _ in range(60):
        bomb = [bomb, bomb]  # 2^60 leaves if every path were walked
    with pytest.raises(CheckpointError, match="is a list"):
        read(write(tmp_path / "w.pdparams", {"w": bomb}))


def test_loops_and_deep_nesting_are_refused(tmp_path):
    loop = []
    loop.append(loop)
    with pytest.raises(CheckpointError, match="refused"):
        read(write(tmp_path / "loop.pdparams", {"w": loop}))
    (tmp_path / "deep.pdparams").write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(CheckpointError, match="refused"):
        read(tmp_path / "deep.pdparams")


def test_every_truncation_is_a_checkpoint_error(tmp_path):
    data = pickle.dumps(STATE, protocol=4)
    positions = sorted({position for _, _, position in pickletools.genops(data)} | set(range(0, len(data), 7)))
    for position in positions:
        (tmp_path / "w.pdparams").write_bytes(data[:position])
        with pytest.raises(CheckpointError):
            read(tmp_path / "w.pdparams")


@pytest.mark.parametrize(("content", "found"), [
    (b"", "empty"), (b"\x1f\x8b\x08 gzip", "damaged"), (b"<html>404</html>", "damaged"),
    (pickle.dumps([1, 2]), "holds a list"), (pickle.dumps({"a": "text"}), "'a' is a str"),
    (pickle.dumps({}), "no entries"),
])
def test_files_that_are_no_weights(tmp_path, content, found):
    (tmp_path / "w.pdparams").write_bytes(content)
    with pytest.raises(CheckpointError, match=found):
        read(tmp_path / "w.pdparams")


def test_a_missing_file_names_where_it_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"set weights=PATH"):
        read(tmp_path / "none")
