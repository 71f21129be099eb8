"""What readers get: notebooks that run, a report, figures for papers, models side by side, adapters with a card."""

import itertools
import re

import jupytext
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
import yaml
from matplotlib.text import Text
from nbclient import NotebookClient
from PIL import Image

from enigma import figures
from enigma.errors import InputError
from enigma.figures.style import arm_styles
from enigma.llm.callbacks import first_batch_warnings
from enigma.llm.playground import published, side_by_side
from enigma.profile import load_profile
from enigma.record.cache import Store
from enigma.record.cite import cite
from enigma.record.files import file_hash
from enigma.record.results import Results
from enigma.run.card import model_card
from enigma.run.pipeline import NOTEBOOKS
from enigma.stages import select, train


@pytest.fixture
def adapter(tiny):
    return train.adapter(tiny.profile, tiny.results.store, "grpo", 0)


def test_the_introduction_runs_from_its_first_cell_to_its_last(tiny, tmp_path):
    source = NOTEBOOKS / "00_enigma_in_five_minutes.py"
    notebook = jupytext.read(source, fmt="py:percent")
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = parameters.source.replace('"cpu"', repr(str(tiny.path)))
    (tmp_path / "lab").mkdir()
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "lab")}})
    done = client.execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert "Found" not in nbformat.writes(done)


def test_models_answer_side_by_side(tiny, adapter):
    principles = [one.text for one in select.chosen_sets(tiny.profile, tiny.results.store)["high"]]
    arguments = ("Why do we sleep?", "Be kind.", principles, tiny.profile.prompts.model_dump())
    table = side_by_side(tiny.profile.model, {"untrained": None, "grpo": adapter}, *arguments, max_tokens=8)
    assert list(table.index) == ["untrained", "grpo"]
    assert list(table) == ["answer", "Be kind.", *principles]
    assert table.drop(columns="answer").sum(axis=1).to_numpy() == pytest.approx(1)
    assert all(isinstance(answer, str) and answer for answer in table["answer"])


def test_adapters_that_are_not_published_are_named(tmp_path):
    with pytest.raises(InputError, match=r"cpu/adapters: found no adapter grpo-s0"):
        published(tmp_path / "cpu" / "adapters", ["grpo-s0"])


def test_an_adapter_names_no_path_and_its_card_says_what_it_is(tiny, adapter, monkeypatch):
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not re.search(r'"[^"]*/[^"]*"', (adapter / "adapter_config.json").read_text())
    # Trained by the commit of its own rows, whatever made other runs' rows or the tables of them later.
    monkeypatch.setattr(tiny.results, "read_record", lambda: {"commit": "a later one"})
    own = train.piece(tiny.profile, tiny.results.store, "enigma_high", 0)
    monkeypatch.setattr(
        Store, "made", lambda self, piece: {"commit": "0f" if piece == own else "a later one"}
    )
    card = model_card(tiny.profile, tiny.results, "enigma_high", 0)
    assert "commit `0f`" in card and "a later one" not in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "peft" and head["license"] == "apache-2.0"
    assert str(tiny.results.root) not in card and "None" not in card
    for one in select.chosen_sets(tiny.profile, tiny.results.store)["high"]:
        assert f"{one.name}: {one.text}" in card


WELL = "<reasoning>Air dries it.</reasoning><answer>Use a bag.</answer>"


@pytest.mark.parametrize(
    ("completions", "tokens", "free", "said"),
    [
        ((WELL, "bread"), 10, 0.5, []),
        ((WELL, WELL), 10, 0.5, ["prompts.demonstration"]),
        ((WELL, "bread"), 48, 0.5, ["2 of 2 completions", "max_completion_length"]),
        ((WELL, "bread"), 10, 0.04, ["4%", "per_device_train_batch_size"]),
    ],
)
def test_a_first_batch_that_bodes_ill_is_told_with_what_to_turn(completions, tokens, free, said):
    rows = [{"question": "q", "principle": "p", "completion": text, "tokens": tokens} for text in completions]
    lines = first_batch_warnings(rows, 48, free)
    assert not first_batch_warnings(rows[:2], 49, 1.0, further=True)
    assert len(lines) == bool(said)
    assert all(word in lines[0] for word in said)


def test_a_figure_is_kept_where_its_table_cannot_be_read(tiny, monkeypatch):
    def refuse(name):
        raise InputError(f"{name} was made with another profile")

    monkeypatch.setattr(tiny.results, "read_table", refuse)
    with pytest.raises(InputError, match="another profile"):
        figures.make(tiny.profile, tiny.results, "fig3_training")
    assert (tiny.results.figures / "fig3_training.png").is_file()


@pytest.mark.parametrize("name", [name for name in figures.FIGURES if name != "fig11_prediction"])
def test_a_figure_has_a_form_for_one_column_of_a_paper(tiny, name):
    path = tiny.results.figures / "column" / f"{name}.png"
    if not (tiny.results.figures / f"{name}.png").is_file():
        pytest.skip("nothing to draw in so small a run")
    with Image.open(path) as image:
        assert image.width == pytest.approx(3.4 * 300, abs=1)
    cited = dict(re.findall(r"file: +(\S+) \(sha256 (\w+)\)", cite(tiny.results, name)))
    inputs = [f"tables/{table}.csv" for table in figures.FIGURES[name].tables]
    wanted = [f"figures/{name}.png", f"figures/{name}.pdf", f"figures/column/{name}.pdf", *inputs]
    assert cited == {str(place): file_hash(place) for place in map(tiny.results.folder.joinpath, wanted)}


def test_an_arm_of_more_steps_does_not_speak_for_the_others(tiny):
    curve = [{"arm": "grpo", "step": step, "reward_graded": 0.9} for step in range(1, 6)]
    curve += [{"arm": "enigma_high", "step": step, "reward_graded": 0.4} for step in range(1, 12)]
    training = pd.DataFrame(curve).assign(seed=0, probe=0.0, row_bound=0.0, sinkhorn=0.0)
    drawn, caption = figures.FIGURES["fig3_training"].draw(tiny.profile, training)
    assert "grpo 0.90 and enigma_high 0.40" in caption
    assert any("grpo reaches the highest" in text.get_text() for text in drawn.texts)
    plt.close(drawn)


@pytest.mark.parametrize("name", ["neighbours", "study"])
def test_no_two_arms_look_alike(name):
    looks = list(arm_styles(load_profile(name)).values())
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_text_of_a_published_figure_lies_on_another(name):
    crowded = ("neighbours",) if name in ("fig3_training", "fig12_neighbours") else ()
    for run, column in itertools.product(("cpu", "study", *crowded), (False, True)):
        profile, figure = load_profile(run), figures.FIGURES[name]
        results = Results.reference(profile)
        if not (results.figures / f"{name}.json").is_file():
            continue
        drawn, _ = figure.draw(profile, *map(results.read_table, figure.tables), column=column)
        drawn.draw_without_rendering()
        inside = [
            one for axes in drawn.axes for one in (*axes.get_children(), axes.xaxis.label, axes.yaxis.label)
        ]
        texts = [one for one in inside if isinstance(one, Text) and one.get_text().strip()]
        boxes = [(text, text.get_window_extent().padded(-0.5)) for text in texts]
        for (text, box), (other, against) in itertools.combinations(boxes, 2):
            assert not box.overlaps(against), f"{run} {name}: {text} on {other}"
        for shown in drawn.legends:
            box = shown.get_window_extent()
            assert drawn.bbox.x0 <= box.x0 and box.x1 <= drawn.bbox.x1, f"{run} {name}: legend cut"
        plt.close(drawn)


def test_the_report_shows_figures_in_reading_order_and_formulas_without_a_script(tiny):
    text = (tiny.results.folder / "report.html").read_text(encoding="utf-8")
    shown = re.findall(r'<img src="figures/fig(\d+)_\w+\.png" alt="(Figure \d+: [^"]+)"', text)
    assert [int(number) for number, _ in shown] == sorted(int(number) for number, _ in shown)
    assert len(shown) >= 6
    assert "<math" in text and "$$" not in text
    for target in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{target}"' in text, target
