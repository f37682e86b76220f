"""Every kind of data set becomes ids, labels and images; what cannot is refused with what was expected."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurestream.errors import DataError, UnknownNameError, UsageError
from featurestream_producer.datasets import ImageDataset, open_dataset


def write_image(path: Path, colour: tuple[int, int, int] = (10, 20, 30)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a.png, b.png and sub/c.png."""
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        write_image(tmp_path / name, (number, 0, 0))
    return tmp_path


def table(folder: Path, text: str, name: str = "list.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def red(dataset: ImageDataset, index: int) -> int:
    return int(np.asarray(dataset.load(index))[0, 0, 0])


# ---- folders ---------------------------------------------------------------------------------------------------


def test_a_folder_of_class_folders_is_sorted_by_class_and_path(tmp_path: Path) -> None:
    for number, name in enumerate(("dog/2.JPG", "cat/10.png", "cat/sub/9.png", "dog/1.jpeg")):
        write_image(tmp_path / name, (50 * number, 0, 0))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".git").mkdir()
    found = open_dataset(str(tmp_path))
    assert list(found.ids) == ["cat/10.png", "cat/sub/9.png", "dog/1.jpeg", "dog/2.JPG"]
    assert found.labels is not None
    assert (found.labels.tolist(), found.labels.dtype) == ([0, 0, 1, 1], np.int64)
    assert (found.classes, found.source, len(found)) == (("cat", "dog"), str(tmp_path), 4)
    assert [red(found, index) for index in (0, 1)] == [50, 100]


def test_a_folder_is_what_torchvisions_image_folder_sees(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for name in ("b/x.png", "b/d/a.png", "a/z.jpg", "B/1.bmp"):
        write_image(tmp_path / name)
    theirs, ours = ImageFolder(tmp_path), open_dataset(str(tmp_path))
    assert ours.labels is not None
    assert list(ours.classes or ()) == theirs.classes
    assert sorted(zip(ours.ids, ours.labels.tolist(), strict=True)) == sorted(
        (Path(path).relative_to(tmp_path).as_posix(), label) for path, label in theirs.samples
    )


def test_a_folder_without_class_folders_says_what_is_expected(tmp_path: Path) -> None:
    write_image(tmp_path / "1.png")
    with pytest.raises(
        UsageError, match=r'holds no class folders; expected one subfolder a class, like ".*/cat/1.jpg"'
    ):
        open_dataset(str(tmp_path))


def test_a_class_folder_without_images_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "1.png")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r'dog" holds no image; remove it or fill it'):
        open_dataset(str(tmp_path))


def test_an_image_folder_takes_no_table_options(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is an image folder: --root, --label-column would have no effect"):
        open_dataset(str(tmp_path), root=tmp_path, label_column="y")
    with pytest.raises(UsageError, match=r'has no splits; name the folder itself: ".*/train"'):
        open_dataset(str(tmp_path), split="train")


def test_a_missing_folder_says_what_a_data_set_can_be(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r'no such folder or file: ".*nowhere"; expected an image folder .* a CSV'
    ) as e:
        open_dataset(str(tmp_path / "nowhere"))
    assert e.value.exit_code == 2


# ---- tables ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.png,3\nb.png,1\nsub/c.png,3\n",
        "a.png,3\nb.png,1\nsub/c.png,3\n",
        "a.png 3\nb.png 1\nsub/c.png 3",
        "a.png\t3\nb.png\t1\nsub/c.png\t3\n",
        "file;class\na.png;3\nb.png;1\nsub/c.png;3\n",
        '"path", "label"\n"a.png", 3\n"b.png", 1\n"sub/c.png", 3\n',
        "\ufefflabel,extra,Image_Path\n3,x,a.png\n1,y,b.png\n3,z,sub/c.png\n",
        "\r\npath,label\r\na.png,3\r\n\r\nb.png,1\r\nsub/c.png,3\r\n\r\n",
        "./a.png,3\nb.png,1\nsub//c.png,3\n",
        "a.png,3\nb.png,1\nsub\\c.png,3\n",
    ],
    ids=["header", "bare", "spaces", "tabs", "semicolons", "quotes", "bom", "blank lines", "dots", "backslashes"],
)
def test_a_table_is_read_in_every_usual_form(pictures: Path, text: str) -> None:
    found = open_dataset(table(pictures, text))
    assert list(found.ids) == ["a.png", "b.png", "sub/c.png"]
    assert found.labels is not None
    assert (found.labels.tolist(), found.labels.dtype, found.classes) == ([3, 1, 3], np.int64, None)
    assert [red(found, index) for index in range(3)] == [0, 1, 2]


def test_a_table_can_be_packed_and_its_images_elsewhere(
    pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("lists") / "list.csv.gz"
    place.write_bytes(gzip.compress(f"{pictures}/a.png,cat\nb.png,dog\n".encode()))
    found = open_dataset(str(place), root=pictures)
    assert (list(found.ids), found.classes) == (["a.png", "b.png"], ("cat", "dog"))


def test_names_are_numbered_in_alphabetical_order(pictures: Path) -> None:
    found = open_dataset(table(pictures, "a.png,zebra\nb.png,ant\nsub/c.png,zebra\n"))
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes) == ([1, 0, 1], ("ant", "zebra"))


def test_numbers_with_a_point_are_values(pictures: Path) -> None:
    found = open_dataset(table(pictures, "path,label\na.png,0.5\nb.png,-2\nsub/c.png,1e3\n"))
    assert found.labels is not None
    assert (found.labels.tolist(), found.labels.dtype, found.classes) == ([0.5, -2, 1000], np.float32, None)


def test_several_label_columns_are_a_vector_each(pictures: Path) -> None:
    found = open_dataset(table(pictures, "path,x,y,label\na.png,1,2.5,7\nb.png,3,4,7\n"), label_column="y,x")
    assert found.labels is not None
    assert (found.labels.tolist(), found.labels.dtype) == ([[2.5, 1], [4, 3]], np.float32)


def test_columns_can_be_named(pictures: Path) -> None:
    text = "path,img,kind\nold/a.png,a.png,ant\nold/b.png,b.png,bee\n"
    found = open_dataset(table(pictures, text), path_column="img", label_column="kind")
    assert (list(found.ids), found.classes) == (["a.png", "b.png"], ("ant", "bee"))


def test_a_split_keeps_its_rows(pictures: Path) -> None:
    place = table(pictures, "path,label,split\na.png,1,train\nb.png,2,val\nsub/c.png,3,train\n")
    found = open_dataset(place, split="train")
    assert found.labels is not None
    assert (list(found.ids), found.labels.tolist()) == (["a.png", "sub/c.png"], [1, 3])
    with pytest.raises(UnknownNameError, match=r'unknown split "valid"; did you mean "val"\?; known: train, val'):
        open_dataset(place, split="valid")


def test_a_table_without_labels_has_none(pictures: Path) -> None:
    for text in ("path\na.png\nb.png\n", "a.png\nb.png\n", "path,width\na.png,6\nb.png,6\n"):
        assert open_dataset(table(pictures, text)).labels is None


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, 'list.csv" is empty; expected one image a line: path,label'),
        ("  \n\n", {}, 'list.csv" is empty'),
        ("path,label\n", {}, "has a header and no rows"),
        (
            "path,label\na.png,1\n",
            {"label_column": "lable"},
            'unknown label column "lable".*"label".*known: path, label',
        ),
        ("path,label\na.png,1\n", {"label_column": "label,x"}, 'unknown label column "x"'),
        ("path,label\na.png,1\n", {"path_column": "file"}, 'unknown path column "file".*known: path, label'),
        ("path,label\na.png,1\n", {"split": "train"}, 'has no column "split"; it has: path, label'),
        ("foo,bar\na.png,1\n", {}, "cannot tell whether the first line is a header: foo, bar; name the columns"),
        ("a.png,1\nb.png,\n", {}, r'line 2: no value in label column "1" \(1 such lines\); .* -1'),
        ("path,label\n\na.png,1\n,2\n", {}, "line 4: no path"),
        ("path,label\na.png,1\nb.png\n", {}, 'line 3: no value in label column "label"'),
        ("a.png,1\nb.png,2,3\n", {}, "cannot read .* as a table: .*2 fields in line 2, saw 3"),
        ("path,label\na.png,1,5\nb.png,2,6\n", {}, "cannot read .* as a table"),
        ("path,a,b\na.png,1,x\n", {"label_column": "a,b"}, "line 2: 'x' in label column \"b\"; expected a finite"),
        ("a.png,0.5\nb.png,nan\n", {}, "line 2: 'nan' in label column"),
        ("a.png,0.5\nb.png,1e60\n", {}, "line 2: '1e60' in label column"),
        ("a.png,1\nb.png,99999999999999999999\n", {}, "does not fit 64 bits"),
        ("a.png,1\nb.png,2\n./a.png,3\n", {}, r'names "a.png" twice: samples 0 and 2; .* drop the duplicates'),
        ("/elsewhere/a.png,1\n", {}, r'line 1: "/elsewhere/a.png" does not lie below .* --root'),
        ("x/a.png,1\nx/b.png,2\n", {}, r"none of 2 images looked for exists, for example .*x/a.png.*--root"),
        ("path,label\na.png,1\n", {"root": Path("no/such/root")}, r'no such folder: "no/such/root"'),
    ],
)
def test_a_table_that_cannot_be_used_says_why(
    pictures: Path, text: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises((UsageError, DataError), match=message):
        open_dataset(table(pictures, text), **options)  # type: ignore[arg-type]


def test_a_file_that_is_no_table_is_refused(pictures: Path) -> None:
    (pictures / "list.csv").write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(DataError, match=r"cannot read .*; expected a CSV in UTF-8, plain or .gz"):
        open_dataset(str(pictures / "list.csv"))
    (pictures / "list.csv.gz").write_bytes(gzip.compress(b"a.png,1\n" * 99)[:20])
    with pytest.raises(DataError, match="cannot read"):
        open_dataset(str(pictures / "list.csv.gz"))


# ---- images ----------------------------------------------------------------------------------------------------


def load_first(folder: Path, name: str) -> Image.Image:
    write_image(folder / "there.png")
    return open_dataset(table(folder, f"{name},1\nthere.png,1\n")).load(0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_usual_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    name = "x.jpg" if mode in {"CMYK", "YCbCr"} else "x.png"
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(tmp_path / name)
    image = load_first(tmp_path, name)
    assert (image.mode, image.size) == ("RGB", (5, 3))
    assert np.asarray(image).min() >= 254


def test_an_image_stands_as_its_camera_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "x.jpg", exif=exif)
    assert load_first(tmp_path, "x.jpg").size == (2, 4)


def test_sixteen_bit_images_keep_their_upper_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert np.asarray(load_first(tmp_path, "x.png"))[0, :, 0].tolist() == [0, 1, 255]


def test_transparent_palette_images_decode_without_a_warning(tmp_path: Path) -> None:
    Image.new("P", (3, 3)).save(tmp_path / "x.png", transparency=b"\x00\x80")
    assert load_first(tmp_path, "x.png").mode == "RGB"


def test_an_image_that_cannot_be_decoded_is_an_error_with_path_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "folder.png").mkdir()
    Image.new("F", (2, 2)).save(tmp_path / "values.tif")
    Image.new("1", (4000, 4000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    reasons = {
        "cut.jpg": "truncated|Premature end",
        "cut.png": "truncated",
        "empty.png": "cannot identify",
        "text.png": "cannot identify",
        "folder.png": "IsADirectoryError",
        "gone.png": "no such file",
        "values.tif": 'mode "F" has no stated range',
        "bomb.png": "DecompressionBombError",
    }
    for name, reason in reasons.items():
        with pytest.raises(DataError, match=reason) as e:
            load_first(tmp_path, name)
        assert e.value.path == str(tmp_path / name)
        assert re.search(reason, str(e.value.reason))


# ---- torchvision and functions ---------------------------------------------------------------------------------


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR10 compares MD5 sums of the real files; ours are small."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: Path(path).is_file())


@pytest.mark.usefixtures("unchecked")
def test_a_torchvision_data_set_is_found_by_name(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    train = open_dataset("torchvision:CIFAR10", root=tmp_path)
    assert train.labels is not None
    assert (train.source, len(train), train.labels[:4].tolist()) == ("torchvision:CIFAR10", 10, [0, 1, 0, 1])
    assert (train.ids[0], train.classes) == ("0", ("ant", "bee"))
    assert np.asarray(train.load(3)).shape == (32, 32, 3)
    assert red(train, 3) == 3
    test = open_dataset("torchvision:CIFAR10", root=tmp_path, split="test")
    assert (list(test.ids), red(test, 1)) == (["test/0", "test/1"], 101)


def write_cifar10(root: Path) -> None:
    """Write what CIFAR10 reads: five training batches of two images, a test batch, and the class names."""
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir()
    for batch, (name, _) in enumerate([*CIFAR10.train_list, *CIFAR10.test_list]):
        first = 100 if batch == 5 else 2 * batch
        data = np.zeros((2, 3072), np.uint8)
        data[0], data[1] = first, first + 1
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [0, 1]}))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": ["ant", "bee"]}))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("torchvision:CIFAR11", {}, r'unknown torchvision data set "CIFAR11"; did you mean "CIFAR10"'),
        ("torchvision:CIFAR10", {}, "torchvision:CIFAR10 needs the folder of its data; give it with --root"),
        ("torchvision:FakeData", {"root": Path()}, "torchvision:FakeData takes no folder"),
        ("torchvision:FakeData", {"split": "train"}, "torchvision:FakeData has no splits"),
        ("torchvision:FakeData", {"label_column": "y"}, "is no table: --label-column would have no effect"),
        ("torchvision:CIFAR10", {"root": Path(), "split": "valid"}, 'unknown split of .*CIFAR10 "valid".*train, test'),
        (
            "torchvision:SVHN",
            {"root": Path("none"), "split": "x"},
            "torchvision:SVHN cannot be opened with root='none'",
        ),
        ("torchvision:CIFAR10", {"root": Path("none")}, "cannot be opened .*not found.*; nothing is downloaded here"),
        ("no_such_module_of_ours:f", {}, 'cannot import "no_such_module_of_ours"'),
    ],
)
def test_a_data_set_that_cannot_be_opened_says_why(source: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_dataset(source, **options)  # type: ignore[arg-type]


MODULE = """
import numpy as np
from PIL import Image
from featurestream_producer.datasets import ImageDataset

class Pairs:
    def __len__(self): return 12
    def __getitem__(self, index):
        if index == 11: raise OSError("the disk is gone")
        return Image.new("L", (3, 3), index), float(index)

class Labelled(Pairs):
    targets = list(range(12))
    classes = [f"class {i}" for i in range(12)]

class Annotated(Labelled):
    targets = [{"boxes": []}] * 12

class Tensors(Labelled):
    def __getitem__(self, index): return index, index

class Scores(Labelled):
    targets = np.ones((12, 2))

def with_root(root, split="all"):
    return ImageDataset(f"{root}/{split}", ["x"], None, None, Labelled())

def endless(): return iter([])
def broken(): return 1 / 0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "datasets_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "datasets_of_mine"


def test_pairs_of_image_and_label_are_a_data_set(mine: str) -> None:
    found = open_dataset(f"{mine}:Labelled")
    assert found.labels is not None
    assert (found.ids[3], found.labels.tolist(), (found.classes or ())[3]) == ("03", list(range(12)), "class 3")
    assert (found.load(3).mode, red(found, 3)) == ("RGB", 3)


def test_labels_are_read_from_the_pairs_where_there_is_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = MODULE.replace('if index == 11: raise OSError("the disk is gone")', "")
    (tmp_path / "datasets_without_list.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    found = open_dataset("datasets_without_list:Pairs")
    assert found.labels is not None
    assert (found.labels.tolist(), found.labels.dtype) == (list(range(12)), np.float32)


def test_an_image_that_a_users_data_set_cannot_give_is_an_error_with_its_index(mine: str) -> None:
    with pytest.raises(DataError, match=r"Labelled\[11\].*OSError: the disk is gone") as e:
        open_dataset(f"{mine}:Labelled").load(11)
    assert e.value.reason == "OSError: the disk is gone"
    with pytest.raises(DataError, match=r"expected a pair \(PIL image, label\), got int for the image"):
        open_dataset(f"{mine}:Tensors").load(0)


def test_labels_that_are_no_numbers_leave_a_data_set_without_labels(mine: str) -> None:
    assert open_dataset(f"{mine}:Annotated").labels is None


def test_several_numbers_a_sample_stay_several(mine: str) -> None:
    labels = open_dataset(f"{mine}:Scores").labels
    assert labels is not None
    assert (labels.shape, labels.dtype) == ((12, 2), np.float32)


def test_a_function_gets_root_and_split_where_they_are_given(mine: str) -> None:
    assert open_dataset(f"{mine}:with_root", root=Path("r")).source == "r/all"
    assert open_dataset(f"{mine}:with_root", root=Path("r"), split="s").source == "r/s"
    with pytest.raises(UsageError, match=r"cannot be called with no arguments: .*'root'"):
        open_dataset(f"{mine}:with_root")
    with pytest.raises(UsageError, match="cannot be called with root: "):
        open_dataset(f"{mine}:broken", root=Path("r"))
    with pytest.raises(UsageError, match="failed: ZeroDivisionError"):
        open_dataset(f"{mine}:broken")
    with pytest.raises(UsageError, match="which has no length; expected an ImageDataset or a map-style data set"):
        open_dataset(f"{mine}:endless")


def test_fake_data_serves_for_trying_things_out() -> None:
    found = open_dataset("torchvision:FakeData")
    assert found.labels is not None
    assert (len(found), found.labels.dtype, found.load(0).size) == (1000, np.int64, (224, 224))


# ---- the data set itself ---------------------------------------------------------------------------------------


def give(index: int) -> Image.Image:
    return Image.new("RGB", (1, 1))


def test_the_fingerprint_changes_with_ids_labels_and_classes_alone() -> None:
    labels = np.array([0, 1])
    base = ImageDataset("a", ["x", "y"], labels, ("c", "d"), give)
    assert base.fingerprint() == ImageDataset("b", ("x", "y"), labels.copy(), ("c", "d"), red).fingerprint()
    others = [
        ImageDataset("a", ["x", "z"], labels, ("c", "d"), give),
        ImageDataset("a", ["y", "x"], labels, ("c", "d"), give),
        ImageDataset("a", ["x", "y"], labels[::-1].copy(), ("c", "d"), give),
        ImageDataset("a", ["x", "y"], labels.astype(np.float32), None, give),
        ImageDataset("a", ["x", "y"], None, None, give),
        ImageDataset("a", ["x", "y"], labels, ("c", "e"), give),
        ImageDataset("a", ["x", "y"], labels, None, give),
    ]
    assert len({base.fingerprint(), *(other.fingerprint() for other in others)}) == 8
    assert base.fingerprint() == "a6f74deead5e04d548011007b94249f12fe44ff4d28dd3338a3e31a41de1f5e7"


@pytest.mark.parametrize(
    ("ids", "labels", "message"),
    [
        ([], None, "is empty; expected at least one image"),
        (["a", "b", "a"], None, 'names "a" twice: samples 0 and 2'),
        (["a", "\udcff"], None, "is not valid UTF-8; rename the file"),
        (["a"], np.zeros(2, np.int64), r"labels are int64 \(2,\); expected .* N = 1"),
        (["a"], np.zeros((1, 2), np.int64), r"labels are int64 \(1, 2\)"),
        (["a"], np.zeros(1), r"labels are float64 \(1,\)"),
    ],
)
def test_a_data_set_that_contradicts_itself_is_refused(ids: list[str], labels: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageDataset("mine", ids, labels, None, give)  # type: ignore[arg-type]


def test_data_sets_reach_loader_processes(pictures: Path, mine: str) -> None:
    for found in (open_dataset(table(pictures, "a.png,1\nb.png,2\n")), open_dataset(f"{mine}:Labelled")):
        again = pickle.loads(pickle.dumps(found))
        assert again.fingerprint() == found.fingerprint()
        assert red(again, 1) == 1
