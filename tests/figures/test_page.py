import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from wsurgery.errors import UsageError
from wsurgery.experiments.claim_lines import Line, read_claims
from wsurgery.experiments.networks import Networks, read_experiments
from wsurgery.experiments.report import as_json, read_report
from wsurgery.figures.page import render_page, render_results
from wsurgery.figures.tables import comparison_rows, markdown, table_rows, terminal_tables

FAST = [{0: 0.5, 20: 0.92, 40: 0.95}, {0: 0.5, 20: 0.8, 40: 0.94}]
SLOW = [{0: 0.5, 20: 0.6, 40: 0.7}, {0: 0.5, 20: 0.55, 40: 0.65}]
CLAIMS = read_claims(Path(__file__).parents[2] / "recipes" / "demo" / "claims.txt")
ACROSS = Line("larger-gain", ("transfer", "random"), {}, "It gains more.", "")
HOSTILE = "<script>alert('1')&\x1b[31m"


class Page(HTMLParser):
    """Collects tags, attributes and the rows of tables, and checks that elements are closed in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.first_cells: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "th" and dict(attrs).get("scope") == "row":
            self.first_cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if "th" in self.open and "tr" in self.open and "thead" not in self.open and "small" not in self.open:
            self.first_cells[-1] += data


@pytest.fixture
def experiment(make_experiment: Callable[..., Path]) -> Path:
    return make_experiment({"random": SLOW, "transfer": FAST, "meanvar": FAST, HOSTILE: FAST})


def render(folder: Path) -> str:
    return render_page(read_report(folder, threshold="0.9"), title="A & B <i>")


def test_the_page_needs_nothing_from_outside(experiment: Path) -> None:
    text = render(experiment)
    assert "://" not in text
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))


def test_every_arm_is_in_the_table_and_hostile_names_are_text(experiment: Path) -> None:
    page = Page(render(experiment))
    assert page.first_cells[:4] == ["random", "transfer", "meanvar", "<script>alert('1')&\\x1b[31m"]
    assert page.text.count("A & B <i>") == 2
    assert "\x1b" not in render(experiment)


def test_every_reference_inside_the_page_leads_somewhere(experiment: Path) -> None:
    tags = Page(render(experiment)).tags
    ids = {attributes.get("id") for _, attributes in tags}
    used = {(a.get("xlink:href") or "")[1:] for tag, a in tags if tag == "use"}
    clips = {a["clip-path"][5:-1] for _, a in tags if a.get("clip-path")}  # type: ignore[index]
    assert used
    assert used | clips <= ids


def test_the_same_runs_give_the_same_bytes(experiment: Path) -> None:
    assert render(experiment) == render(experiment)


def test_sections_without_data_name_the_command_that_makes_it(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment({"shuffle": FAST}, bare=True)
    text = render(folder)
    for command in ("wsurgery eval", "wsurgery train", "wsurgery cca RUN --with-init", "wsurgery cca RUN_A RUN_B"):
        assert f"<code>{command}" in text
    assert len([tag for tag, _ in Page(text).tags if tag == "svg"]) == 2  # a swatch and the curve


def test_an_undefined_layer_is_a_dash(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment({"transfer": FAST[:1]})
    path = folder / "cca" / "random-pair.json"
    content = json.loads(path.read_text())
    content["layers"][1].update(value=None, normalised=None, floor=None)
    path.write_text(json.dumps(content))
    assert "<td>–</td>" in render(folder)
    assert [x["layer"] for x in as_json(read_report(folder, threshold="0.9"))["pair_differences"]] == [
        "block1",
        "block3",
    ]


def test_a_page_is_of_one_metric_and_names_it(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment({"transfer": FAST[:1]})
    files = [folder / "runs" / "transfer" / "1" / "cca-init.json", *(folder / "cca").glob("*.json")]
    for path in files:
        content = json.loads(path.read_text())
        rows = [{**layer, "metric": "procrustes", "value": 0.25} for layer in content["layers"]]
        path.write_text(json.dumps({**content, "layers": rows}))
    found = read_report(folder, threshold="0.9")
    for text in (render(folder), markdown(found, title="T")):
        assert "Procrustes similarity" in text
        assert "canonical" not in text
    # Of several metrics in a file it is the mean canonical correlation, whatever their order.
    rows = [{**layer, "metric": "mean_cca", "value": 0.75} for layer in rows] + rows
    for path in files:
        path.write_text(json.dumps({**content, "layers": rows[::-1]}))
    found = read_report(folder, threshold="0.9")
    assert "Mean canonical correlation by layer" in markdown(found, title="T")
    assert set(found.comparisons["random-pair"].means().values()) == {0.75}
    files[0].write_text(json.dumps({**content, "layers": rows[len(rows) // 2 :]}))
    with pytest.raises(UsageError, match=r"several metrics, transfer-to-init of procrustes and \S+-pair of mean_cca"):
        read_report(folder, threshold="0.9")


def test_markdown_holds_the_rows_of_the_terminal_and_every_claim(make_experiment):
    found = read_report(make_experiment({"random": SLOW, "transfer": FAST}), threshold="0.9", claims=CLAIMS)
    text = markdown(found, title="T")
    for row in table_rows(found):
        assert "| " + " | ".join(row) + " |" in text
    assert found.claims
    for claim in found.claims:
        assert claim.claim in text
        assert claim.verdict in text
    for row in comparison_rows(found.comparisons):
        assert "| " + " | ".join(row) + " |" in text
    assert "0.820 (0.820 to 0.820) [0.10, 0.90]" in text


def test_chosen_arms_come_in_their_order_and_the_others_are_not_looked_at(make_experiment):
    folder = make_experiment({"random": SLOW, "transfer": FAST, "gabor": FAST})
    (folder / "runs" / "random" / "1" / "metrics.json").unlink()  # still training
    found = read_report(folder, threshold="0.9", arms=["gabor", "transfer"], comparisons=["transfer-to-init"])
    assert list(found.arms) == ["gabor", "transfer"]
    assert list(found.comparisons) == ["transfer-to-init"]
    text = render_page(found, title="T")
    assert "Are two networks alike?" not in text  # left out, not missing
    assert "Not judged" not in text
    with pytest.raises(UsageError, match="has no runs of meanvar: there are random, transfer, gabor"):
        read_report(folder, threshold="0.9", arms=["meanvar"])


def test_a_report_of_comparisons_alone(make_experiment):
    folder = make_experiment({"transfer": FAST})
    found = read_report(folder, threshold="0.9", arms=[], comparisons=["pretrained-pair", "random-pair"])
    text = render_page(found, title="T")
    assert "Convergence" not in text
    assert text.count("<svg") == 1
    assert len(terminal_tables(found)) == 1
    assert markdown(found, title="T").count("|---") == 5
    with pytest.raises(UsageError, match="is left to report"):
        read_report(folder, threshold="0.9", arms=[], comparisons=[])


def test_what_the_paper_says_stands_first_and_brings_nothing_from_outside(experiment):
    found = read_report(experiment, threshold="0.9")
    paper = (
        "Figure **6**.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<script>x</script> ![picture](https://example.org/a.png)\n"
    )
    text = render_page(found, title="T", paper=paper)
    page = Page(text)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "img" not in [tag for tag, a in page.tags if "base64" not in (a.get("src") or "")]
    assert text.index("<strong>6</strong>") < text.index("<td class='number'>1</td>") < text.index("Accuracy and speed")
    assert markdown(found, title="T", paper=paper).startswith(f"# T\n\n## The paper\n\n{paper}")


def test_the_page_says_once_how_claims_were_tested(experiment):
    folder = experiment
    found = read_experiments([folder], threshold="0.9", claims=CLAIMS)
    tested = sum(claim.p is not None for claim in found.claims)
    assert tested == 3  # transfer, meanvar, and the lowest layer; the pairs are not tested
    for text in (render_page(found, title="T"), markdown(found, title="T")):
        assert text.count(f"the {tested} claims of this page that were tested") == 1
    assert "claims" not in markdown(read_report(folder, threshold="0.9"), title="T")


def test_the_page_says_that_until_auc_stopped_a_run(make_experiment):
    folder = make_experiment({"random": SLOW, "transfer": FAST})
    said = "A run that --until-auc stopped"
    assert said not in markdown(read_report(folder, threshold="0.9"), title="T")
    for seed in ("1", "2"):
        config = {"settings": {"until_auc": 0.95}}
        (folder / "runs/transfer" / seed / "config.json").write_text(json.dumps(config))
    found = read_report(folder, threshold="0.9")
    assert markdown(found, title="T").count(said) == render_page(found, title="T").count(said) == 1


def test_every_claim_is_judged_or_said_not_to_be_in_every_form(make_experiment):
    folder = make_experiment({"random": SLOW, "transfer": FAST})
    found = read_experiments([folder], threshold="0.9", claims=[*CLAIMS, ACROSS])
    assert len(found.claims) + len(found.not_judged) == len(CLAIMS) + 1
    said = "Not judged here, for want of meanvar, transfuse-block1, gabor, shuffle, sample, another network: 6 claims."
    for form in (render_page(found, title="T"), markdown(found, title="T")):
        assert form.count("Not judged") == form.count(said) == 1
        assert form.index(found.claims[-1].claim) < form.index(said) < form.index("In brackets the range")
    wants = [x["wants"] for x in as_json(found)["not_judged"]]
    assert wants[0] == ["meanvar"]
    assert wants[-1] == ["another network"]
    every = read_experiments([folder], threshold="0.9", claims=CLAIMS[:1])
    assert "Not judged" not in render_page(every, title="T") + markdown(every, title="T")
    none = read_experiments([folder], threshold="0.9", claims=[ACROSS])
    assert all("Not judged here" in form for form in (render_page(none, title="T"), markdown(none, title="T")))
    hostile = [ACROSS._replace(kind="faster", names=(HOSTILE, "random"))]
    assert "<script" not in render_page(read_experiments([folder], threshold="0.9", claims=hostile), title="T")


def test_names_in_markdown_are_text_to_whoever_shows_it(make_experiment):
    names = [HOSTILE, "<img src=x onerror=y>", "a|b", "`c`", "![d](http:e)", "[f](g)", "&lt;", "*h*", "\\", "x\n# y"]
    folder = make_experiment({"random": SLOW, **dict.fromkeys((name.replace("/", "∕") for name in names), FAST)})
    for path in (folder / "cca").glob("*.json"):
        content = json.loads(path.read_text())
        content["layers"][0]["layer"] = HOSTILE
        path.write_text(json.dumps(content))
    text = markdown(Networks({HOSTILE: (found := read_report(folder, threshold="0.9"))}, [], []), title="<b>T")
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inside = [child for token in tokens for child in token.children or ()]
    assert {token.type for token in [*tokens, *inside]}.isdisjoint(
        ("html_block", "html_inline", "image", "link_open", "code_inline", "hr", "fence")
    )
    rows = [i for i, token in enumerate(tokens) if token.type == "tr_open"]
    firsts = ["".join(child.content for child in tokens[i + 2].children) for i in rows]
    assert {row[0] for row in table_rows(found)} <= set(firsts)


def test_every_form_says_of_how_many_patients_the_test_aucs_are(make_experiment: Callable[..., Path]) -> None:
    folder = make_experiment({"random": SLOW, "transfer": FAST})

    def forms() -> list[str]:
        report = read_report(folder, threshold="0.9")
        return [render_page(report, title=""), markdown(report, title=""), str(terminal_tables(report)[1].caption)]

    assert all("Test AUC" not in form for form in forms())  # files of an older version do not say it
    for arm, n in (("random", 2000), ("transfer", 9)):
        for seed in (1, 2):
            file = folder / "runs" / arm / str(seed) / "eval.json"
            file.write_text(json.dumps({"macro_auc": 0.8, "n": n, "independent": "patients", "units": n // 9}))
    for form in forms():
        assert (
            "Test AUC: of 2,000 images of 222 patients or 9 images of 1 patients; its spread over seeds is no" in form
        )
        assert "interval for other patients" in form
    third = folder / "runs" / "random" / "1" / "eval.json"
    third.write_text(json.dumps({"macro_auc": 0.8, "n": 50, "independent": "patients", "units": 2}))
    assert all(
        "Test AUC: of 9 to 2,000 images of 1 to 222 patients, others in each fold; its" in form for form in forms()
    )


def test_a_number_stays_on_one_line_wherever_its_table_comes_from(make_experiment, tmp_path):
    cells = ["0.782 ± 0.043", "+0.01 (-0.02 to 0.03)", "> 300, > 300", "≤ 0.56 (0.31 to 0.91)"]
    words = "3 of the seeds never came to the threshold, and one of them came to it and fell below it again"
    (tmp_path / "RESULTS.md").write_text(
        f"| a | b | c | d | e |\n|---|---:|---|---|---|\n| {' | '.join(cells)} | {words} |\n"
    )
    text = render_results([tmp_path / "RESULTS.md"], title="T")
    for cell in cells:
        assert re.search(rf"<td class='number'[^>]*>{re.escape(cell.replace('>', '&gt;'))}</td>", text)
    assert f"<td>{words}</td>" in text
    text = render(make_experiment({"random": SLOW, "transfer": FAST}))
    assert re.search(r"<td class='number'>0\.8\d\d<small>", text)
    assert ".number, td small { white-space: nowrap; }" in text


def test_no_letter_in_a_figure_is_smaller_than_10_pixels_on_a_phone(experiment: Path) -> None:
    """The page is 390 pixels wide, and its margins are 16."""
    figures = re.findall(r"<figure><svg viewBox=.0 0 ([\d.]+).*?</svg>", render(experiment), re.DOTALL)
    letters = re.findall(r"font(?:-size)?: (?:bold )?([\d.]+)px", render(experiment))
    assert len(figures) >= 3
    assert letters
    assert min(map(float, letters)) * (390 - 2 * 16) / max(map(float, figures)) >= 10


def test_each_arm_of_the_table_has_the_line_and_the_marker_of_its_figures(make_experiment):
    names = [f"arm{i}" for i in range(11)]
    page = Page(render(make_experiment(dict.fromkeys(names, FAST), bare=True)))
    swatches = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("class") == "swatch"]
    assert swatches == names
    marks = [
        (a["points"], b["stroke-dasharray"])
        for (t, a), (_, b) in zip(page.tags[1:], page.tags, strict=False)
        if t == "polygon"
    ]
    colours = [attributes["fill"] for _, attributes in page.tags if attributes.get("class") == "swatch"]
    assert len(set(zip(colours, marks, strict=True))) == 11
