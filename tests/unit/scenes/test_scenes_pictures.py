"""Pictures and masks of a folder as people keep them: EXIF, formats, names, sizes; and the options of a folder."""

import io
import json
import logging
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from test_scenes_masks import png

from bindkit.affinities.scoring import image_pixels
from bindkit.errors import BrokenSceneError, InvalidParameterError, SceneSetError
from bindkit.pipeline.parameters import absolute_scenes, check_choices
from bindkit.scenes import check_scenes, open_scenes, write_ade20k
from bindkit.scenes.decoding import MAX_PIXELS, read_header, read_image, read_stored
from bindkit.scenes.splits import named_groups
from bindkit.views.explorer.sources import uploaded_image

RNG = np.random.default_rng(8)
OBLONG, SQUARE = (RNG.integers(0, 256, shape, dtype=np.uint8) for shape in ((12, 20, 3), (16, 16, 3)))


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("images", "instances"):
        (tmp_path / name).mkdir()
    return tmp_path


def exif(orientation: int) -> bytes:
    written = Image.Exif()
    written[0x0112] = orientation
    return written.tobytes()


def save(pixels: np.ndarray, path: Path, orientation: int = 1, **options: object) -> Path:
    if orientation != 1:
        options["exif"] = exif(orientation)
    Image.fromarray(pixels).save(path, **options)
    return path


def mask_of(image: np.ndarray) -> np.ndarray:
    """Objects that say where they lie: the left half of a picture, and its upper half in a second id."""
    mask = np.ones(image.shape[:2], dtype=np.uint8)
    mask[: len(mask) // 2] += 1
    mask[:, : mask.shape[1] // 2] += 2
    return mask


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """By Pillow, from a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", exif=exif(orientation))
    return np.array(ImageOps.exif_transpose(Image.open(stream)))


# --- orientation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_read_upright_and_their_header_says_so(tmp_path, suffix: str, orientation: int):
    path = save(OBLONG, tmp_path / f"a{suffix}", orientation, **({"lossless": True} if suffix == ".webp" else {}))
    wanted = upright(OBLONG, orientation)
    assert (read_image(path) == wanted).all()
    assert (read_stored(path).pixels == OBLONG).all()
    header = read_header(path)
    assert header.size == OBLONG.shape[:2]
    assert header.size_when(upright=True) == wanted.shape[:2]
    assert header.orientation == orientation
    assert (image_pixels(path) == wanted).all()
    assert (uploaded_image("a", path.read_bytes()).subject.pixels == wanted).all()


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("picture", [OBLONG, SQUARE], ids=["oblong", "square"])
def test_a_mask_of_the_upright_picture_lies_on_it(folder, caplog, picture: np.ndarray, orientation: int):
    wanted = upright(picture, orientation)
    save(picture, folder / "images" / "a.png", orientation)
    save(mask_of(wanted), folder / "instances" / "a.png")
    scenes = open_scenes(f"folder:{folder}")
    scene = scenes[0]
    assert (scene.image == wanted).all()
    assert (scene.instances == mask_of(wanted)).all()
    assert scenes.size_of(0) == scene.size
    certain = orientation >= 5 and picture is OBLONG
    assert ("the mask fits it both ways" in caplog.text) is not certain
    assert ("note: an EXIF orientation turns the picture" in str(check_scenes(scenes))) is not certain
    insisted = open_scenes(f"folder:{folder},orientation=upright")
    assert (insisted[0].image == wanted).all()
    assert insisted[0].remarks == ()


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("picture", [OBLONG, SQUARE], ids=["oblong", "square"])
def test_a_mask_of_the_pixels_as_stored_lies_on_them(folder, picture: np.ndarray, orientation: int):
    save(picture, folder / "images" / "a.png", orientation)
    save(mask_of(picture), folder / "instances" / "a.png")
    certain = orientation >= 5 and picture is OBLONG
    scenes = open_scenes(f"folder:{folder}" if certain else f"folder:{folder},orientation=stored")
    assert (scenes[0].image == picture).all()
    assert (scenes[0].instances == mask_of(picture)).all()
    assert scenes.size_of(0) == scenes[0].size
    assert scenes[0].remarks == ()
    if certain:
        with pytest.raises(BrokenSceneError, match=f"image {orientation}, mask 1; read upright"):
            open_scenes(f"folder:{folder},orientation=upright")[0]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_mask_with_an_orientation_of_its_own_is_turned_by_it(folder, suffix: str, orientation: int):
    wanted = upright(OBLONG, orientation)
    save(wanted, folder / "images" / "a.png")
    save(mask_of(OBLONG), folder / "instances" / f"a{suffix}", orientation)
    scene = open_scenes(f"folder:{folder},orientation=upright")[0]
    assert (scene.image == wanted).all()
    assert (scene.instances == upright(mask_of(OBLONG), orientation)).all()
    save(OBLONG, folder / "images" / "a.png", orientation)
    scene = open_scenes(f"folder:{folder}")[0]  # both are turned alike: nothing to decide
    assert (scene.image == wanted).all()
    assert (scene.instances == upright(mask_of(OBLONG), orientation)).all()
    assert scene.remarks == ()


def test_what_is_to_be_said_is_logged_once_with_a_file_and_listed_with_all_scenes(folder, caplog):
    for name in "abcdefg":
        save(SQUARE, folder / "images" / f"{name}.jpg", 6)
        save(mask_of(SQUARE), folder / "instances" / f"{name}.png")
    report = check_scenes(open_scenes(f"folder:{folder}"))
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert str(folder / "images") in said[0]
    assert "orientation=stored" in said[0]
    assert str(report).endswith(": a, b, c, d, e and 2 more")


def test_sizes_that_fit_neither_way_name_the_orientation(folder):
    save(OBLONG, folder / "images" / "a.jpg", 6)
    save(np.ones((7, 9), dtype=np.uint8), folder / "instances" / "a.png")
    scenes = open_scenes(f"folder:{folder}")
    for ask in (lambda: scenes[0], lambda: scenes.size_of(0)):
        with pytest.raises(BrokenSceneError, match=r"7 x 9 px but .* 20 x 12 px .*EXIF orientation: image 6, mask 1"):
            ask()


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("kind", [b"eXIf", b"tEXt"])
def test_an_orientation_anywhere_in_a_png_is_found_from_its_header(tmp_path, kind: bytes, behind: bool):
    content = save(OBLONG, tmp_path / "plain.png").read_bytes()
    extra = io.BytesIO()
    data = exif(6)[6:]
    if kind == b"tEXt":
        data = b"Raw profile type exif\0\nexif\n%8d\n" % len(exif(6)) + exif(6).hex().encode()
    PngImagePlugin.putchunk(extra, kind, data)
    place = content.index(b"IEND" if behind else b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes(content[:place] + extra.getvalue() + content[place:])
    assert read_header(path).size_when(upright=True) == read_image(path).shape[:2] == (20, 12)


# --- formats and names -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".JPG", ".WebP"])
@pytest.mark.parametrize("mask_suffix", [".png", ".PNG", ".tif", ".TIFF", ".bmp"])
def test_pictures_and_masks_of_every_format_are_paired(folder, suffix: str, mask_suffix: str):
    picture = np.full((12, 18, 3), 90, dtype=np.uint8)
    save(picture, folder / "images" / f"a{suffix}")
    save(mask_of(picture), folder / "instances" / f"a{mask_suffix}")
    (folder / "classes").mkdir()
    save(mask_of(picture) // 2, folder / "classes" / f"a{mask_suffix}")
    scenes = open_scenes(f"folder:{folder}")
    assert scenes.broken == ()
    assert abs(scenes[0].image.astype(int) - picture).max() <= 3
    assert (scenes[0].instances == mask_of(picture)).all()
    assert (scenes[0].classes == mask_of(picture) // 2).all()
    assert [path.name for path in scenes.sources(0)] == [f"a{suffix}", f"a{mask_suffix}", f"a{mask_suffix}"]


@pytest.mark.parametrize("mask_suffix", [".jpg", ".webp", ".gif"])
def test_a_mask_of_a_format_that_loses_is_refused_by_name_and_not_missing(folder, mask_suffix: str):
    for name, suffix in (("a", mask_suffix), ("b", ".png")):
        save(OBLONG, folder / "images" / f"{name}.jpg")
        save(mask_of(OBLONG), folder / "instances" / f"{name}{suffix}")
    (broken,) = open_scenes(f"folder:{folder}").broken
    assert broken.reason == (
        f"{folder}/instances/a{mask_suffix}: a mask of a format that may change ids; save it anew as one of "
        ".png, .tif, .tiff, .bmp, .npy, .mat"
    )


def test_a_picture_of_a_format_that_is_not_read_is_named_beside_its_mask(folder):
    save(OBLONG, folder / "images" / "a.tga")
    save(OBLONG, folder / "images" / "b.png")
    for name in "ab":
        save(mask_of(OBLONG), folder / "instances" / f"{name}.png")
    (broken,) = open_scenes(f"folder:{folder}").broken
    assert "a.png: a mask whose image is missing: a.tga is none of .png, .tif" in broken.reason


def test_second_pictures_and_second_masks_of_a_name_are_named(folder):
    for name in "abc":
        save(OBLONG, folder / "images" / f"{name}.png")
        save(mask_of(OBLONG), folder / "instances" / f"{name}.png")
    save(OBLONG, folder / "images" / "a.webp")
    save(mask_of(OBLONG), folder / "instances" / "b.tif")
    scenes = open_scenes(f"folder:{folder}")
    assert scenes.ids == ("a", "c")
    assert [scene.reason for scene in scenes.broken] == [
        f"{folder}/images/a.webp: a second image of this name beside a.png",
        f"{folder}/instances/b.tif: a second mask of this name beside b.png",
    ]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_files_of_several_pictures_are_refused_by_name(folder, kind: str):
    frames = [Image.fromarray(OBLONG), Image.fromarray(255 - OBLONG)]
    path = folder / "images" / f"a.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:])
    save(mask_of(OBLONG), folder / "instances" / "a.png")
    with pytest.raises(BrokenSceneError, match=r"holds 2 pictures; give a file of one"):
        open_scenes(f"folder:{folder}")[0]


@pytest.mark.parametrize("forms", [("NFC", "NFD", "NFC"), ("NFD", "NFC", "NFD"), ("NFD", "NFD", "NFC")])
def test_names_are_paired_in_any_normal_form(folder, forms: tuple[str, str, str]):
    (folder / "classes").mkdir()
    names = [unicodedata.normalize(form, "Übung_é") for form in forms]
    save(OBLONG, folder / "images" / f"{names[0]}.png")
    save(mask_of(OBLONG), folder / "instances" / f"{names[1]}.png")
    save(mask_of(OBLONG), folder / "classes" / f"{names[2]}.png")
    scenes = open_scenes(f"folder:{folder}")
    assert scenes.ids == (unicodedata.normalize("NFC", "Übung_é"),)
    assert (scenes[0].instances == mask_of(OBLONG)).all()
    assert [path.stem for path in scenes.sources(0)] == names


def test_a_table_of_groups_names_scenes_in_any_normal_form(folder):
    for name in ("é1", "é2", "b"):
        save(OBLONG, folder / "images" / f"{unicodedata.normalize('NFD', name)}.png")
        save(mask_of(OBLONG), folder / "instances" / f"{name}.png")
    table = unicodedata.normalize("NFD", "id,video\né1,x\né2,x\nb,y\n")
    (folder / "scenes.csv").write_text(table, encoding="utf-8")
    named, _ = named_groups(open_scenes(f"folder:{folder}"), "video")
    assert named == [(1, 2)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_class_names_may_begin_with_a_byte_order_mark(folder, encoding: str):
    save(OBLONG, folder / "images" / "a.png")
    save(mask_of(OBLONG), folder / "instances" / "a.png")
    (folder / "class_names.json").write_text(json.dumps({"1": "Öl"}), encoding=encoding)
    assert open_scenes(f"folder:{folder}").class_names == {1: "Öl"}


def test_instance_masks_of_16_bits_a_colour_keep_their_objects(folder):
    """Ids 601 to 604 differ in the lower byte alone, which Pillow drops."""
    ids = np.repeat(np.arange(601, 605), 5)[None, :, None].repeat(12, 0)
    (folder / "instances" / "a.png").write_bytes(png(ids * np.array([1, 0, 0]), 16, 2))
    (folder / "instances" / "b.png").write_bytes(png(ids * np.array([1, 1, 1]), 16, 2))
    for name in "ab":
        save(OBLONG, folder / "images" / f"{name}.png")
    scenes = open_scenes(f"folder:{folder}")
    assert (scenes[0].instances == ids[..., 0]).all()
    assert (scenes[1].instances == ids[..., 0] - 600).all()  # as colours, above what 32 bits hold
    assert [scene.objects for scene in check_scenes(scenes).statistics] == [4, 4]


# --- pixels ----------------------------------------------------------------------------------------


def test_pictures_above_the_limit_are_refused_for_their_size_before_they_are_decoded(folder):
    save(OBLONG, folder / "images" / "a.png")
    save(mask_of(OBLONG), folder / "instances" / "a.png")
    scenes = open_scenes(f"folder:{folder},max_pixels=239")
    text = r"a\.png: is 12 x 20 px, 240 pixels, above the limit of 239; .*max_pixels=N"
    for ask in (lambda: scenes[0], lambda: scenes.size_of(0)):
        with pytest.raises(BrokenSceneError, match=text):
            ask()
    assert open_scenes(f"folder:{folder},max_pixels=240")[0].size == (12, 20)
    (folder / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"cut")
    with pytest.raises(BrokenSceneError, match="is damaged"):
        scenes[0]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_pillows_own_limit_neither_counts_nor_changes(folder, monkeypatch, suffix: str):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    save(OBLONG, folder / "images" / f"a{suffix}")
    save(mask_of(OBLONG), folder / "instances" / "a.tif")
    assert len(check_scenes(open_scenes(f"folder:{folder}")).statistics) == 1
    assert Image.MAX_IMAGE_PIXELS == 20


def test_a_picture_of_200_megapixels_is_not_called_damaged(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)
    assert read_header(path).size == (10_000, 20_000)
    with pytest.raises(BrokenSceneError, match=r"200,000,000 pixels, above the limit of 199,999,999"):
        read_image(path, max_pixels=199_999_999)
    assert MAX_PIXELS > 200_000_000


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "normal"),
    [
        ("", ""),
        (",void=255", ",void=255"),
        (",void=7+255+7, soft=allow", ",soft=allow,void=7+255"),
        (",void=1,max_pixels=5000,orientation=stored", ",max_pixels=5000,orientation=stored,void=1"),
        (f",max_pixels={MAX_PIXELS}", ""),
    ],
)
@pytest.mark.parametrize("name", ["data", "data, raw", "a=b,c=d", "void=3"])
def test_options_stand_behind_any_directory_in_one_order(tmp_path, name: str, options: str, normal: str):
    root = tmp_path / name
    for part in ("images", "instances"):
        (root / part).mkdir(parents=True)
    save(OBLONG, root / "images" / "a.png")
    save(mask_of(OBLONG), root / "instances" / "a.png")
    scenes = open_scenes(f"folder:{root}{options}")
    assert scenes.uri == f"folder:{root}{normal}"
    again = open_scenes(scenes.uri)
    assert again.uri == scenes.uri
    assert (again[0].instances == scenes[0].instances).all()
    assert absolute_scenes(f"folder:{name}{options}", tmp_path) == f"folder:{root}{options}"


@pytest.mark.parametrize(
    "option", ["viod=255", "void=", "void=a", "void=-1", "void=1.5", "orientation=up", "soft=yes", "max_pixels=0", "=3"]
)
def test_an_option_that_is_not_understood_is_named_with_all_there_are(folder, option: str):
    with pytest.raises(InvalidParameterError, match=f"{option} is not understood; the options are max_pixels: .*void:"):
        open_scenes(f"folder:{folder},{option}")
    with pytest.raises(InvalidParameterError, match="void=2 is given twice"):
        open_scenes(f"folder:{folder},void=1,void=2")


def test_a_directory_that_is_not_there_is_named_without_its_options(tmp_path):
    with pytest.raises(SceneSetError, match=f"^{tmp_path}/no, such is not a directory"):
        open_scenes(f"folder:{tmp_path}/no, such,void=255")


def test_ade20k_takes_the_options_that_can_be_meant_of_it(tmp_path):
    write_ade20k(open_scenes("synthetic:n=2,seed=0,size=32x40"), tmp_path)
    scenes = open_scenes(f"ade20k:{tmp_path},soft=allow,max_pixels=2000")
    assert scenes.uri == open_scenes(scenes.uri).uri == f"ade20k:{tmp_path},max_pixels=2000,soft=allow"
    assert scenes[0].size == (32, 40)
    with pytest.raises(BrokenSceneError, match="1,280 pixels, above the limit of 9"):
        open_scenes(f"ade20k:{tmp_path},max_pixels=9")[0]
    check_choices({"scenes": scenes.uri})
    for ask in (open_scenes, lambda uri: check_choices({"scenes": uri})):
        with pytest.raises(InvalidParameterError, match="void=255 is not understood; the options are max_pixels"):
            ask(f"ade20k:{tmp_path},void=255")


@pytest.mark.parametrize("orientation", [3, 6])
def test_photos_of_ade20k_are_read_upright(tmp_path, orientation: int):
    write_ade20k(open_scenes("synthetic:n=1,seed=0,size=32x40"), tmp_path)
    scenes = open_scenes(f"ade20k:{tmp_path}")
    picture, mask = scenes.sources(0)
    labels = np.array(Image.open(mask))
    save(OBLONG, picture, orientation, quality=95)
    wanted = np.array(ImageOps.exif_transpose(Image.open(picture)))
    save(np.resize(labels, (*wanted.shape[:2], 3)), mask)
    assert (scenes[0].image == wanted).all()
    assert scenes.size_of(0) == wanted.shape[:2]


def test_a_mask_of_ade20k_with_16_bits_a_channel_is_refused(tmp_path):
    write_ade20k(open_scenes("synthetic:n=1,seed=0,size=32x40"), tmp_path)
    scenes = open_scenes(f"ade20k:{tmp_path}")
    scenes.sources(0)[1].write_bytes(png(np.zeros((32, 40, 3), dtype=int) + 300, 16, 2))
    with pytest.raises(BrokenSceneError, match="16 bits a channel"):
        scenes[0]
