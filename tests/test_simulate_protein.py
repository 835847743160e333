"""Simulated multiplexed protein: channels light up where their cells are, in a file that says what it is."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter, maximum_filter

from triglyph.errors import RecipeError, SourceError
from triglyph.storage import file_digest
from triglyph.tissue.frames import Affine
from triglyph.tissue.simulate.fields import sample
from triglyph.tissue.simulate.knobs.names import CELL_TYPES
from triglyph.tissue.simulate.knobs.picture import Protein
from triglyph.tissue.simulate.knobs.states import STATES, Dial
from triglyph.tissue.simulate.picture.protein import CHANNELS, ProteinImage, Proteins, write_protein
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen
from triglyph.tissue.simulate.streams import stream
from triglyph.tissue.windows import WindowReader

TINY = preset("tiny")
PANEL = ("DAPI", "panCK", "CD3", "CD20", "CD68", "Ki67")


def specimen(*channels: str, patient: int = 0, dial: Dial | None = None, **knobs: float) -> Specimen:
    # Not validated: the writer refuses by itself what the knobs refuse too.
    protein = Protein().model_copy(update={"channels": channels, **knobs})
    return Specimen(TINY.model_copy(update={"protein": protein, "dial": dial or Dial()}), patient, 0)


@pytest.fixture(scope="module")
def made() -> Specimen:
    return specimen(*PANEL)


@pytest.fixture(scope="module")
def written(made: Specimen, tmp_path_factory: pytest.TempPathFactory) -> ProteinImage:
    return write_protein(made, tmp_path_factory.mktemp("protein") / "protein.ome.tif")


def glass(made: Specimen) -> np.ndarray:
    """Pixels of 1 µm that are at least 15 µm from tissue."""
    at = (np.stack(np.meshgrid(np.arange(820), np.arange(820)), -1).reshape(-1, 2) + 0.5).astype(np.float64)
    cover = sample(made.tissue.cover, at, made.tissue.step_um).reshape(820, 820)
    return maximum_filter(cover, 31) == 0


# ---- the file


def test_the_file_says_channels_axes_scale_and_levels(written):
    with tifffile.TiffFile(written.path) as tiff:
        assert tiff.is_ome
        series = tiff.series[0]
        assert (series.axes, series.dtype) == ("CYX", np.uint16)
        assert [level.shape for level in series.levels] == [(6, 820, 820), (6, 410, 410)]
        tree = ElementTree.fromstring(tiff.ome_metadata)
        assert tiff.pages[0].tags["XResolution"].value == (10000, 1)
    space = {"ome": "http://www.openmicroscopy.org/Schemas/OME/2016-06"}
    pixels = tree.find(".//ome:Pixels", space)
    assert [c.get("Name") for c in pixels.findall("ome:Channel", space)] == list(PANEL) == list(written.channels)
    for axis in "XY":
        assert float(pixels.get(f"PhysicalSize{axis}")) == 1.0
        assert pixels.get(f"PhysicalSize{axis}Unit") == "µm"


def test_levels_are_box_averages_of_the_ones_above(written):
    with tifffile.TiffFile(written.path) as tiff:
        full, half = (tiff.series[0].levels[k].asarray().astype(np.float64) for k in range(2))
    average = (full[:, ::2, ::2] + full[:, ::2, 1::2] + full[:, 1::2, ::2] + full[:, 1::2, 1::2]) / 4
    assert np.abs(half - average).max() <= 0.5


def test_the_same_specimen_gives_the_same_bytes(written, tmp_path):
    assert file_digest(write_protein(specimen(*PANEL), tmp_path / "again.ome.tif").path) == file_digest(written.path)


def test_the_scale_is_the_knob_at_odd_sizes_too(tmp_path):
    image = write_protein(specimen("DAPI", mpp=1.7), tmp_path / "a.ome.tif")
    pixels = tifffile.imread(image.path)
    assert pixels.shape == (483, 483)
    fine = tifffile.imread(write_protein(specimen("DAPI", mpp=0.85), tmp_path / "b.ome.tif").path)
    small = fine[: 2 * 482, : 2 * 482].reshape(482, 2, 482, 2).mean((1, 3))
    smooth = [gaussian_filter(a.astype(np.float64), 2)[20:-20, 20:-20] for a in (pixels[:482, :482], small)]
    assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > 0.97


def test_the_window_reader_which_reads_rgb_refuses_it(written):
    with pytest.raises(SourceError, match="not an 8-bit RGB image"):
        WindowReader(written.path, to_um=Affine.scale(written.mpp))


@pytest.mark.parametrize("channels", [(), ("CD3", "CD3"), ("CD3", "CD99")])
def test_channels_that_are_none_twice_or_unknown_are_refused(channels, tmp_path):
    with pytest.raises(RecipeError, match="mend"):
        write_protein(specimen(*channels), tmp_path / "a.ome.tif")


# ---- what is in it


def test_channels_light_up_where_their_cells_are(made, written):
    share, number = made.cells_by_type, made.cells_by_type.sum(1)
    seen = tifffile.imread(written.path)
    proteins = Proteins(made)
    types = {"CD3": ["T cell"], "CD20": ["B cell"], "CD68": ["macrophage"], "panCK": ["tumour", "epithelial"]}
    for i, channel in enumerate(PANEL):
        grey = proteins.footprint.mean(seen[i].astype(np.float32), made.centres_um)
        assert np.corrcoef(grey, written.truth[:, i])[0, 1] > (0.8 if channel == "Ki67" else 0.9)
        if channel in types:
            cells = share[:, [CELL_TYPES.index(t) for t in types[channel]]].sum(1)
            assert np.corrcoef(written.truth[:, i], cells)[0, 1] > 0.75
            others = [j for j, t in enumerate(CELL_TYPES) if t not in types[channel]]
            assert max(np.corrcoef(written.truth[:, i], share[:, j])[0, 1] for j in others if share[:, j].any()) < 0.7
    assert np.corrcoef(written.truth[:, 0], number)[0, 1] > 0.85


def test_nuclei_lie_where_the_cells_are(made):
    cells, image = made.tissue.cells, Proteins(made).levels("DAPI")
    at = sample(image, cells.xy_um, 1.0)
    assert np.median(at) > 0.3
    assert glass(made).sum() > 1000
    assert image[glass(made)].max() == 0


def test_a_nuclear_marker_is_in_nuclei_and_a_membrane_marker_around_them(made):
    proteins = Proteins(made)
    cells = made.tissue.cells
    # Thinly strewn T cells: none of their neighbours within two diameters.
    near = np.array([(np.hypot(*(cells.xy_um - xy).T) < 14).sum() for xy in cells.xy_um])
    alone = cells.xy_um[(cells.kind == CELL_TYPES.index("T cell")) & (near == 1)]
    assert len(alone) > 10
    rim = np.concatenate([alone + 4.0 * np.array([np.cos(a), np.sin(a)]) for a in np.arange(0, 6.2, 0.5)])
    cd3, dapi = proteins.levels("CD3"), proteins.levels("DAPI")
    assert sample(cd3, rim, 1.0).mean() > 2 * sample(cd3, alone, 1.0).mean()
    assert sample(dapi, alone, 1.0).mean() > 4 * sample(dapi, rim, 1.0).mean()


def test_cells_of_other_types_have_none_of_a_marker(made):
    proteins = Proteins(made)
    for channel, marker in CHANNELS.items():
        level = proteins.level_of_cells(channel)
        strange = ~np.isin(made.tissue.cells.kind, [CELL_TYPES.index(t) for t in marker.levels])
        assert (level[strange] == 0).all()
        assert (level >= 0).all()


def test_ki67_rises_with_proliferation_alone_as_far_as_the_dial_lets_it():
    def slopes(dial: Dial) -> np.ndarray:
        """(states,) change of the share of positive tumour cells per unit of each state, the others held."""
        states, on = [], []
        for patient in range(3):
            made = specimen("Ki67", patient=patient, dial=dial)
            tumour = made.tissue.cells.kind == CELL_TYPES.index("tumour")
            states.append(made.tissue.cells.states[tumour])
            on.append(Proteins(made).level_of_cells("Ki67")[tumour] > 0)
        x = np.column_stack([np.concatenate(states), np.ones(sum(map(len, on)))])
        return np.linalg.lstsq(x, np.concatenate(on).astype(float), rcond=None)[0][:-1]

    at = STATES.index("proliferation")
    found = slopes(Dial())
    assert found[at] > 0.1
    assert np.abs(np.delete(found, at)).max() < 0.05
    assert np.abs(slopes(Dial(shared=0.0))).max() < 0.05


def test_truth_is_free_of_noise_staining_and_other_channels(written, tmp_path):
    noisy = write_protein(specimen("CD3", "panCK", noise=0.2), tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(noisy.truth, written.truth[:, [2, 1]])
    assert ((written.truth >= 0) & (written.truth <= 1)).all()


def test_the_camera_adds_noise_as_stated_and_a_little_of_the_channel_before():
    made = specimen("panCK", "CD3", noise=0.05)
    proteins, levels = Proteins(made), np.zeros((820, 820), dtype=np.float32)
    dark = proteins.seen("CD3", levels, None) / 65472
    assert dark[glass(made)].std() == pytest.approx(0.05, rel=0.05)
    leaked = proteins.seen("CD3", levels, np.ones_like(levels)) / 65472 - dark
    assert leaked.mean() == pytest.approx(0.04, abs=0.002)
    silent = Proteins(specimen("CD3", noise=0.0)).seen("CD3", levels, None)
    assert silent[glass(made)].std() == 0


def test_her2_is_the_patients():
    lots = [stream(TINY.seed, "HER2", patient).random() for patient in range(40)]
    assert 0.05 < np.mean([lot < 0.2 for lot in lots]) < 0.4
    chosen = {lots[p] < 0.2: p for p in reversed(range(40))}
    means = {}
    for amplified, patient in chosen.items():
        made = specimen("HER2", patient=patient)
        tumour = made.tissue.cells.kind == CELL_TYPES.index("tumour")
        means[amplified] = Proteins(made).level_of_cells("HER2")[tumour].mean()
    assert means[True] > 5 * means[False]


def test_a_failed_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(RecipeError):
        write_protein(specimen("CD3", "nothing"), tmp_path / "a.ome.tif")
    assert list(tmp_path.iterdir()) == []
