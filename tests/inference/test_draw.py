"""Labels: legible in any script, inside the picture, apart from each other, in the package as in the runner."""
import functools
import importlib.util
import inspect
import itertools
import warnings

import cv2
import numpy as np
import pytest
from helpers import ROOT

from ppgfl.data import check
from ppgfl.inference import draw
from ppgfl.system import fonts, text

NAMES = ["person", "行人", "مشاة عبور", "bike 🚲", "x" * 3000, "<b>$x^2$</b>", "\x1b[31m\n", "\u202egpj", "\ud800", "",
         "Ünï 交通信号灯", "自転車 자전거", "पैदल", "_hidden", " "]
SIZES = [(32, 32), (1, 1), (1, 300), (300, 1), (240, 320), (700, 500)]


@pytest.fixture(scope="module")
def runner():
    spec = importlib.util.spec_from_file_location("runner_for_draw", ROOT / "deploy" / "python" / "infer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def fresh():
    """What was found of fonts is forgotten before and after."""
    def forget():
        for module in (draw, fonts):
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper):
                    value.cache_clear()

    forget()
    yield
    forget()


def scene(size, count=12, seed=0):
    """image, boxes (some out of it), scores, labels, names."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.2, 1.2, (count, 2, 2)) * size[::-1]
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
    labels = np.arange(count) % len(NAMES)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    return image, boxes, np.linspace(0.99, 0.3, count), labels, [NAMES[i] for i in labels]


# --- the runner's copy


def test_the_runner_has_the_same_functions(runner):
    ours = {**vars(text), **vars(fonts), **vars(draw)}
    copied = [name for name, value in vars(draw).items() if inspect.getmodule(value) is draw and callable(value)]
    copied += ["font_files", "open_font", "has_letter", "split_by_font", "say_missing_letters", "shown", "escape",
               "without_password"]
    assert len(copied) == 16
    for name in copied:
        assert inspect.getsource(getattr(runner, name)) == inspect.getsource(ours[name]), name
    for name in ("ESCAPED", "JOINERS", "FONT_FOLDERS", "FONT_PACKAGES", "FONTS", "OTHER_STYLES", "FONT_HINT"):
        assert getattr(runner, name) == ours[name], name


@pytest.mark.parametrize("size", SIZES)
def test_the_runner_draws_the_same_pixels(runner, size):
    image, boxes, scores, labels, names = scene(size, len(NAMES))
    rows = np.column_stack([labels, scores, boxes])
    np.testing.assert_array_equal(runner.draw(image, rows, NAMES), draw.draw_boxes(image, boxes, scores, labels, names))
    assert runner.draw(image, rows[:0], NAMES).tolist() == image.tolist()
    assert runner.draw(image, np.array([[99, 0.5, 0, 0, 9, 9]]), NAMES).shape == image.shape  # a class without a name


# --- letters


def ink(name, size=20):
    return draw.text_mask(name, size)


def test_letters_that_a_font_has_are_drawn_by_it():
    assert [part for part, _ in fonts.split_by_font("Ünïcode")] == ["Ünïcode"]
    assert not np.array_equal(ink("ü"), ink("u"))
    assert ink("a").shape[0] == ink("Åg行").shape[0]  # plates of a size are equally high


def test_another_font_stands_in_for_letters_that_the_first_has_not(monkeypatch):
    has = {"latin": "abc", "greek": "αβ", "all": "abcα "}
    monkeypatch.setattr(fonts, "font_files", lambda: tuple(has))
    monkeypatch.setattr(fonts, "has_letter", lambda path, letter: letter in has[path])
    assert fonts.split_by_font("ab c") == (("ab c", "latin"),)
    assert fonts.split_by_font("aα") == (("aα", "all"),)  # one font for all, where there is one
    assert fonts.split_by_font("a αβ") == (("a ", "latin"), ("αβ", "greek"))
    assert fonts.split_by_font("") == (("", "latin"),)


def test_letters_of_no_font_are_escapes_and_said_once(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "has_letter", lambda path, letter: letter.isascii())
    first = fonts.font_files()[0]
    assert fonts.split_by_font("行 a人") == ((r"\u884c a\u4eba", first),)
    assert fonts.split_by_font("猫") == ((r"\u732b", first),)
    assert caplog.text.count("pip install 'ppgfl[fonts]'") == 1


def test_a_mark_that_stands_alone_is_no_letter_of_a_font_without_it():
    dejavu = next(path for path in fonts.font_files() if path.endswith("DejaVuSans.ttf"))
    assert fonts.has_letter(dejavu, "e")
    assert not fonts.has_letter(dejavu, "\u0948")  # a vowel sign of Hindi
    assert not fonts.has_letter(dejavu, "行")


def test_the_font_of_the_user_is_asked_first(monkeypatch, tmp_path, caplog):
    own = next(path for path in reversed(fonts.font_files()) if fonts.open_font(path, 16))
    for setting, first in ((own, own), (str(tmp_path / "none.ttf"), fonts.font_files()[0])):
        monkeypatch.setenv("PPGFL_FONT", setting)
        fonts.font_files.cache_clear()
        assert fonts.font_files()[0] == first
    assert "none.ttf: not a font that can be opened" in caplog.text


def test_annotated_objects_have_names_but_no_scores(monkeypatch):
    image, boxes, scores, labels, names = scene((240, 320), 3)
    texts, text_mask = [], draw.text_mask
    monkeypatch.setattr(draw, "text_mask", lambda text, size: texts.append(text) or text_mask(text, size))
    draw.draw_boxes(image, boxes, scores, labels, names)
    assert texts.count(f"{scores[0]:.2f} ") >= 1
    texts.clear()
    drawn = draw.draw_boxes(image, boxes, None, labels, names)
    assert (drawn != image).any()
    assert not [text for text in texts if any(letter.isdigit() for letter in text)]


@pytest.mark.parametrize("name", ["PIL", "fonts"])
def test_without_pillow_or_a_font_names_are_in_ascii(monkeypatch, caplog, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(fonts.importlib.util, "find_spec", lambda one: None if name in ("PIL", "fonts") else find(one))
    monkeypatch.setattr(fonts, "FONT_FOLDERS", ())
    if name == "fonts":
        monkeypatch.setattr(fonts.importlib.util, "find_spec", lambda one: find(one) if one == "PIL" else None)
    args = scene((240, 320), len(NAMES))
    assert (draw.draw_boxes(*args) != args[0]).any()
    np.testing.assert_array_equal(ink("行"), ink(r"\u884c"))
    assert caplog.text.count("names are drawn in ASCII") == 1


# --- labels


def test_text_is_black_or_white_by_contrast():
    def contrast(a, b):
        high, low = sorted((0.0722 * c[0] + 0.7152 * c[1] + 0.2126 * c[2] for c in (
            [(n / 255 / 12.92 if n <= 10 else ((n / 255 + 0.055) / 1.055) ** 2.4) for n in color] for color in (a, b))),
            reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert draw.text_color((0, 0, 0)) == draw.text_color((255, 0, 0)) == (255, 255, 255)
    assert draw.text_color((255, 255, 255)) == draw.text_color((0, 255, 255)) == (0, 0, 0)
    for color in map(draw.class_color, range(80)):
        assert contrast(color, draw.text_color(color)) > 4.5  # what WCAG asks of text
    shades = draw.plate_shades(3)[0]
    assert tuple(shades[0]) == draw.class_color(3)
    assert tuple(shades[255]) == draw.text_color(draw.class_color(3))


def test_labels_stand_above_their_boxes_and_apart():
    boxes = np.array([[50, 60, 150, 160], [52, 62, 152, 162], [54, 64, 154, 164], [50, 60, 150, 160]])
    taken = np.zeros((0, 4), int)
    for box in boxes:
        x, y = draw.place_label(box, (17, 80), (300, 400), taken)
        taken = np.vstack([taken, [x, y, x + 80, y + 17]])
    assert taken[0].tolist() == [50, 43, 130, 60]
    for a, b in itertools.combinations(taken, 2):
        assert (np.minimum(a[2:], b[2:]) <= np.maximum(a[:2], b[:2])).any(), (a, b)


@pytest.mark.parametrize("box", [[-90, -90, -50, -50], [0, 0, 400, 300], [390, -20, 500, 10], [-30, 290, 20, 400],
                                 [900, 900, 950, 950]])
def test_labels_stay_inside_the_picture(box):
    x, y = draw.place_label(np.array(box), (17, 80), (300, 400), np.zeros((0, 4), int))
    assert 0 <= x <= 320
    assert 0 <= y <= 283


def test_a_long_name_is_cut_and_its_score_is_seen():
    short, cut = draw.name_mask("person", 12, 1000), draw.name_mask("person" * 500, 12, 60)
    assert cut.shape[1] <= 60
    assert draw.name_mask("x" * 3000, 12, 10_000).shape[1] < 12 * 41
    assert short.shape[1] < draw.name_mask("person" * 500, 12, 1000).shape[1]
    assert draw.name_mask("person", 12, 3).shape[1] <= 3  # no room at all


def test_lines_grow_with_the_picture():
    for side, width in ((32, 1), (700, 2), (4000, 11)):
        image = np.zeros((side, side, 3), np.uint8)
        box = np.array([[0.25 * side, 0.25 * side, 0.75 * side, 0.75 * side]])
        column = draw.draw_boxes(image, box, np.array([0.9]), np.array([0]), ["a"])[side // 2, :side // 2]
        assert width <= np.count_nonzero(column.any(axis=1)) <= width + 2


@pytest.mark.parametrize("boxes", [[[np.nan] * 4], [[-np.inf, 0, np.inf, 9]], [[9, 9, 1, 1]], [[1e30, 0, 1e30, 1]]])
def test_boxes_that_are_none_break_nothing(boxes):
    image = np.zeros((50, 60, 3), np.uint8)
    assert draw.draw_boxes(image, np.array(boxes), np.array([np.nan]), np.array([10**6]), ["a"]).shape == image.shape


# --- charts


def test_charts_show_names_as_they_are(tmp_path):
    report = check.Report("TrainDataset", tmp_path, NAMES)
    report.boxes_of.update({name: i + 1 for i, name in enumerate(NAMES)})
    report.sides = [3.0, 40.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing, mathematics that cannot be read
        with fonts.chart_fonts(NAMES):
            check._draw(report, tmp_path / "a.png")
    assert cv2.imread(str(tmp_path / "a.png")) is not None


def test_a_chart_takes_no_name_for_something_else():
    from matplotlib.figure import Figure

    names = ["$a$", "_b", "", "a\\$b$c$", "x" * 3000, "\n"]
    axes = Figure().subplots()
    for name in names:
        axes.plot([0, 1], label=fonts.chart_text(name))
    shown = [entry.get_text() for entry in axes.legend().get_texts()]
    assert len(shown) == len(names)
    drawn = [entry._preprocess_math(entry.get_text()) for entry in axes.get_legend().get_texts()]
    assert drawn == [(text, False) for text in ("$a$", " _b", " ", "a\\$b$c$", "x" * 21 + "…", r"\n")]
