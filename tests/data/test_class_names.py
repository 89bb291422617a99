"""Classes of a model and of a file, matched by name."""
import pytest

from ppgfl import ConfigError
from ppgfl.data.class_names import order


@pytest.mark.parametrize(("trained", "listed", "wanted"), [
    (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2]), (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
    (None, ["b", "a"], [0, 1]), (["class 0", "class 1"], ["b", "a"], [0, 1]),
    (["a", "b"], ["class 0", "class 1"], [0, 1]), (["class 1", "class 0"], ["class 0", "class 1"], [1, 0])])
def test_each_class_finds_its_place(trained, listed, wanted):
    assert order(trained, listed, "a.json") == wanted


@pytest.mark.parametrize("listed", [["a (id 1)", "a (id 2)"], ["b", "a"], ["猫", "狗"]])
def test_classes_can_be_matched_by_their_places(caplog, listed):
    assert order(["a", "b"], listed, "a.json", by_place=True) == [0, 1]
    assert "by their places" in caplog.text
    with pytest.raises(ConfigError):
        order(["a", "b", "c"], listed, "a.json", by_place=True)


@pytest.mark.parametrize(("trained", "listed"), [
    (["a", "b"], ["a", "c"]), (["a", "b"], ["a"]), (["a"], ["a", "b"]), (["a", "A"], ["a", "b"]),
    (["a", "b", "b"], ["b", "a", "b"]), (["class 0", "class 1"], ["a", "b", "c"])])
def test_other_classes_are_refused(trained, listed):
    message = rf"a.json: lists {len(listed)} classes: .*the model has {len(trained)} classes"
    with pytest.raises(ConfigError, match=message):
        order(trained, listed, "a.json")
