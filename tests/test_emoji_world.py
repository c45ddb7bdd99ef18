"""Properties of the emoji world's examples, on artwork of colored shapes made here."""

import dataclasses
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw

from reground_jax.conditioning import Texts
from reground_jax.emoji import world as emoji_world
from reground_jax.emoji.artwork import Artwork, Pictogram, load_artwork, save_artwork, trimmed
from reground_jax.emoji.backgrounds import SETTINGS, background
from reground_jax.emoji.captions import NUMBERS
from reground_jax.emoji.categories import CATEGORIES
from reground_jax.emoji.placing import cover, real_box_sets
from reground_jax.emoji.styles import STYLES
from reground_jax.emoji.tokenizer import emoji_tokenizer, vocabulary_size
from reground_jax.emoji.world import LARGE, Example, World, WorldConfig


@cache
def shapes() -> Artwork:
    """For each category, a filled polygon of 3 to 10 corners in its own color, in two families."""
    artwork: Artwork = {}
    for number, (noun, category) in enumerate(CATEGORIES.items()):
        drawings = []
        for family in ("noto", "twemoji"):
            # 160 x 120: neither square nor the stored size, to exercise cropping and scaling
            image = Image.new("RGBA", (160, 120))
            color = (37 * number % 256, 91 * number % 256, 200 if family == "noto" else 40, 255)
            ImageDraw.Draw(image).regular_polygon((80, 60, 50), 3 + number % 8, fill=color)
            drawings.append(Pictogram(family, category.codes[0], trimmed(image)))
        artwork[noun] = tuple(drawings)
    return artwork


@cache
def small() -> World:
    return World(WorldConfig(), shapes())


@cache
def examples(n: int = 300) -> tuple[Example, ...]:
    """300 are enough for every setting, style and attribute to occur."""
    return tuple(small().batch(0, n))


def same(a: Example, b: Example) -> bool:
    alike = np.array_equal(a.image, b.image) and np.array_equal(a.labels, b.labels)
    return alike and (a.layout, a.facts) == (b.layout, b.facts)


def test_an_example_depends_on_its_seed_only() -> None:
    again = World(WorldConfig(), shapes())
    again.example(99)  # earlier calls must not matter
    for seed in (0, 7, emoji_world.HELDOUT_START):
        assert same(small().example(seed), again.example(seed))


def test_different_seeds_give_different_pictures() -> None:
    # a repeated picture among 300 would mean that some seeds share their random numbers
    assert len({example.image.tobytes() for example in examples()}) == len(examples())


def test_the_number_of_an_example_in_its_stream_does_not_depend_on_the_batch_size() -> None:
    assert all(map(same, small().batch(1, 4), small().batch(0, 8)[4:]))


def test_no_batch_has_a_heldout_example() -> None:
    last_stream = emoji_world.STREAMS - 1
    with pytest.raises(ValueError, match="choose smaller numbers"):
        small().batch(emoji_world.SEEDS_PER_STREAM, 1)
    with pytest.raises(ValueError, match="choose smaller numbers"):
        small().batch(0, 1, seed=last_stream + 1)
    last = small().batch(emoji_world.SEEDS_PER_STREAM - 1, 1, seed=last_stream)[0]
    assert int(str(last.layout.id).removeprefix("emoji-")) < emoji_world.HELDOUT_START
    held = small().heldout(20)
    assert {example.layout.id for example in held}.isdisjoint(e.layout.id for e in examples())
    assert {e.image.tobytes() for e in held}.isdisjoint(e.image.tobytes() for e in examples())


def test_boxes_are_tight_around_what_each_object_draws() -> None:
    world, size = small(), 64
    for seed in range(100):
        rng = np.random.default_rng(seed)
        objects, sprites = world._objects(rng, world._groups(rng, "color"), 1.0)
        for thing, sprite in zip(objects, sprites, strict=True):
            empty = np.full((size, size, 3), 128, np.float32)
            drawn = empty.copy()
            emoji_world.blend(drawn, sprite)
            # An opaque shape changes the canvas; its fringe (alpha < DRAWN of 255) changes it by at
            # most 48/255 of the 128 or so levels between shape and canvas: 25 levels.
            ys, xs = np.nonzero(np.abs(drawn - empty).max(-1) > 25)
            x0, y0, x1, y1 = (round(size * v) for v in thing["box"])
            assert (x0, y0) <= (xs.min(), ys.min()) and (xs.max() + 1, ys.max() + 1) <= (x1, y1)
            # one pixel of slack: a shape's tip can be faint
            assert max(xs.min() - x0, ys.min() - y0, x1 - 1 - xs.max(), y1 - 1 - ys.max()) <= 1


def test_leaving_an_object_out_changes_only_pixels_in_its_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = dataclasses.replace(WorldConfig(), styles=("color",))
    world, real_blend = World(plain, shapes()), emoji_world.blend
    for seed in range(40):
        whole = world.example(seed)
        for left_out in range(len(whole.facts["objects"])):
            seen: list[tuple[float, ...]] = []

            def blend(canvas, sprite, seen=seen, left_out=left_out):  # type: ignore[no-untyped-def]
                seen.append(sprite.box(64))
                if len(seen) - 1 != left_out:
                    real_blend(canvas, sprite)

            with monkeypatch.context() as patch:
                patch.setattr(emoji_world, "blend", blend)
                partial = world.example(seed)
            ys, xs = np.nonzero((whole.image != partial.image).any(-1))
            x0, y0, x1, y1 = (round(64 * v) for v in seen[left_out])
            # one pixel of slack: the faint fringe outside the box still blends with the background
            assert x0 - 1 <= xs.min() and xs.max() <= x1 and y0 - 1 <= ys.min() and ys.max() <= y1
            # most of a box is opaque (a triangle fills half), and neighbors cover a fifth each
            assert len(xs) > 0.2 * (x1 - x0) * (y1 - y0)


def test_labels_name_the_category_of_every_object_that_is_seen() -> None:
    config = small().config
    for example in examples():
        assert example.labels.shape == example.image.shape[:2]
        seen = np.zeros_like(example.labels)
        for thing in example.facts["objects"]:
            number = config.categories.index(thing["category"]) + 1
            x0, y0, x1, y1 = (round(config.size * v) for v in thing["box"])
            part = example.labels[y0:y1, x0:x1]
            assert (part == number).any()
            seen[y0:y1, x0:x1] |= part  # nothing has a label outside of the boxes
        np.testing.assert_array_equal(seen, example.labels)


def test_objects_are_large_enough_apart_and_in_their_layout() -> None:
    for example in examples():
        boxes = [thing["box"] for thing in example.facts["objects"]]
        assert 1 <= len(boxes) <= 4  # max_objects of the small world
        for x0, y0, x1, y1 in boxes:
            # 0.3 of the side, minus a pixel or two for rounding and faint fringes
            assert np.sqrt((x1 - x0) * (y1 - y0)) >= 0.3 - 2 / 64
        for i, a in enumerate(boxes):
            # 0.2 as placed, plus rounding to pixels
            assert all(cover(a, b) <= 0.27 for b in boxes[:i])
        boxed = [thing for thing in example.facts["objects"] if thing["boxed"]]
        assert example.layout.boxes == tuple(thing["box"] for thing in boxed)
        nouns = [CATEGORIES[thing["category"]].phrase for thing in boxed]
        assert list(example.layout.phrases) == nouns
    share = np.mean([all(t["boxed"] for t in e.facts["objects"]) for e in examples()])
    assert 0.7 < share < 0.98  # some captions name objects without a box, most do not


def test_objects_of_the_small_world_lie_on_its_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = emoji_world.blend

    def blend(canvas, sprite):  # type: ignore[no-untyped-def]
        seen.append(sprite)
        real(canvas, sprite)

    monkeypatch.setattr(emoji_world, "blend", blend)
    for seed in range(60):
        small().example(seed)
    assert all(s.left % 8 == s.top % 8 == 0 for s in seen)
    sides = {max(s.pixels.shape[:2]) for s in seen}
    assert sides <= {24, 32, 40, 48, 56, 64} and len(sides) >= 4
    free = World(dataclasses.replace(WorldConfig(), grid=1), shapes())
    seen.clear()
    for seed in range(10):
        free.example(seed)
    assert any(s.left % 8 for s in seen)


def test_captions_say_what_the_facts_say() -> None:
    for example in examples():
        text, facts = example.layout.prompt, example.facts
        assert (SETTINGS[facts["setting"]].where in text) == facts["setting_told"], text
        assert ("at night" in text) == (facts["time"] == "night"), text
        style = facts["style"]
        assert style == "color" or STYLES[style].picture in text, text
        names = [thing["category"] for thing in facts["objects"]]
        for thing in facts["objects"]:
            count, category = names.count(thing["category"]), CATEGORIES[thing["category"]]
            name = category.noun if count == 1 else category.plural
            words = f"{thing['attribute']} {name}" if thing["attribute"] else name
            numbers = ("a", "an", "one") if count == 1 else (NUMBERS[count],)
            assert any(f"{number} {words}" in text for number in numbers), text
        assert len(text.split()) <= 40


def test_every_setting_style_and_attribute_of_the_world_occurs() -> None:
    config = small().config
    facts = [example.facts for example in examples()]
    assert {fact["setting"] for fact in facts} == set(config.settings)
    assert {fact["style"] for fact in facts} == set(config.styles)
    attributes = {thing["attribute"] for fact in facts for thing in fact["objects"]}
    assert attributes == {None, "upside down", *config.tints}
    assert {fact["time"] for fact in facts} == {"day", "night"}


def test_what_cannot_be_seen_is_never_said() -> None:
    for example in examples():
        style = STYLES[example.facts["style"]]
        assert style.colors or not SETTINGS[example.facts["setting"]].plain
        for thing in example.facts["objects"]:
            category, attribute = CATEGORIES[thing["category"]], thing["attribute"]
            assert attribute not in category.colors
            assert attribute in (None, "upside down") or style.colors
            assert attribute != "upside down" or category.upright


def test_the_tokenizer_knows_every_word_and_truncates_no_caption() -> None:
    for world in (small(), World(dataclasses.replace(LARGE, size=64), shapes())):
        text, config = emoji_tokenizer(world.config)
        texts = Texts(text, config)
        layouts = [example.layout for example in world.batch(0, 300)]
        ids = texts.ids([t for layout in layouts for t in (layout.prompt, *layout.phrases)])
        unknown = 0
        assert (ids != unknown).all() and ids.max() < vocabulary_size(text)
        assert (ids[:, 0] == config.bos_token_id).all()
        assert (ids[:, -1] == config.pad_token_id).all()  # padded, so nothing was truncated
        # words of equal meaning get equal ids, whatever the case and punctuation
        a, b = texts.ids(["A cat on a beach, at night.", "a cat on a BEACH , at night ."])
        assert (a == b).all()
        with pytest.warns(UserWarning, match="vocabulary: 'fire', 'hydrant'"):
            assert (texts.ids(["fire-hydrant"]) == unknown).sum() == 2  # hyphens separate words


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_drawn_by_day_and_night(setting: str) -> None:
    rng = np.random.default_rng
    day = background(setting, 32, rng(0), night=False)
    assert day.shape == (32, 32, 3)
    if SETTINGS[setting].nights:
        night = background(setting, 32, rng(0), night=True)
        assert night.mean() < 0.7 * day.mean()  # visibly dark
    if not SETTINGS[setting].plain:
        gray = day.mean(-1)
        assert gray.std() > 8  # visible without color: 8 of 255 levels is faint but enough


@pytest.mark.parametrize("style", STYLES)
def test_every_style_keeps_the_image_shape_and_is_visible(style: str) -> None:
    image = small().heldout(1)[0].image
    styled = STYLES[style].apply(image)
    assert styled.shape == image.shape and styled.dtype == np.uint8
    if style != "color":
        # levels of 255: less would be hard to tell from the plain picture
        assert np.abs(styled.astype(int) - image.astype(int)).mean() > 5


def test_real_box_sets_lie_in_the_image_and_apart() -> None:
    for count, sets in real_box_sets().items():
        for boxes in sets:
            assert len(boxes) == count
            for x0, y0, x1, y1 in boxes:
                assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def test_artwork_round_trips_and_a_bad_file_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    some = {noun: shapes()[noun] for noun in ("cat", "teddy bear")}
    save_artwork(some, tmp_path / "artwork.npz")
    again = load_artwork(tmp_path / "artwork.npz")
    assert list(again) == list(some)
    for noun in some:
        for a, b in zip(some[noun], again[noun], strict=True):
            assert (a.family, a.code) == (b.family, b.code) and (a.pixels == b.pixels).all()
    with pytest.raises(ValueError, match=r"missing\.npz.*reground_jax\.emoji\.artwork"):
        load_artwork(tmp_path / "missing.npz")


def test_a_config_or_artwork_that_lacks_something_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="categories has 'unicorn'"):
        WorldConfig(categories=("cat", "unicorn"))
    with pytest.raises(ValueError, match="add one that shows without color"):
        WorldConfig(settings=("pink",))
    with pytest.raises(ValueError, match="artwork has no 'dog'"):
        World(WorldConfig(), {"car": shapes()["car"], "cat": shapes()["cat"]})
