"""Plans: rows for everything, edits, differences, files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fanin
from fanin.errors import ApplyError, FaninError, InputsError, PlanError, RecipeError, SchemeError
from fanin.plans import Plan
from fanin.schemes import Keep, Normal, Orthogonal, Packed, Scheme, VarianceScaling, Zeros

pytestmark = pytest.mark.usefixtures("untouched_random_state")


class Mixed(nn.Module):
    """Tied, packed, padded, normalized and bare parameters in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 16, padding_idx=2)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2)
        self.memory = nn.LSTM(16, 12)
        self.body = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 16), nn.ReLU())
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.table.weight
        self.A_log = nn.Parameter(torch.ones(3))


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return Mixed()


@pytest.fixture
def plan(model: nn.Module) -> Plan:
    return fanin.plan(model, recipe="he")


@pytest.mark.parametrize("recipe", ["zero", "normal", "xavier", "he", "lecun", "orthogonal", "torch"])
class TestEveryClassicRecipe:
    def test_has_a_row_and_a_reason_for_every_parameter(self, recipe: str, model: nn.Module) -> None:
        plan = fanin.plan(model, recipe=recipe)
        assert [row.name for row in plan] == [name for name, _ in model.named_parameters()]
        assert all(row.reason for row in plan)

    def test_survives_a_file(self, recipe: str, model: nn.Module, tmp_path: Path) -> None:
        plan = fanin.plan(model, recipe=recipe)
        again = Plan.load(plan.save(tmp_path / "init.json"))
        assert again == plan
        assert hash(again) == hash(plan)
        assert again.digest == plan.digest
        assert not plan.diff(again)

    def test_covers_a_model_full_of_nan(self, recipe: str, model: nn.Module) -> None:
        plan = fanin.plan(model, recipe=recipe)
        with torch.no_grad():
            for row in plan:
                if not row.kept:
                    model.get_parameter(row.name).fill_(math.nan)
        fanin.apply(plan, model, seed=3)
        report = plan.verify(model)
        assert report, str(report)
        assert not model.table.weight[2].any()

    def test_is_idempotent_and_decided_by_the_seed(self, recipe: str, model: nn.Module) -> None:
        plan = fanin.plan(model, recipe=recipe)
        fanin.apply(plan, model, seed=3)
        first = [value.detach().clone() for value in model.parameters()]
        fanin.apply(plan, model, seed=3)
        assert all(torch.equal(a, b) for a, b in zip(first, model.parameters(), strict=True))


def test_torch_recipe_draws_what_constructors_draw(model: nn.Module) -> None:
    plan = fanin.plan(model, recipe="torch")
    for row in plan:
        values = model.get_parameter(row.name).detach()
        expected_mean, expected_std = row.expected
        if row.kept or values.numel() < 100:
            continue
        # Six standard errors of a normal law; uniform ones err less. At n ≥ 192 a factor √2 is 8 of them away.
        assert values.std(correction=0).item() == pytest.approx(expected_std, rel=6 / math.sqrt(2 * values.numel()))
        assert values.mean().item() == pytest.approx(expected_mean, abs=6 * expected_std / math.sqrt(values.numel()))


def test_rows_know_block_stds(plan: Plan) -> None:
    assert plan["attention.in_proj_weight"].block_std == pytest.approx({"q": 0.25, "k": 0.25, "v": 0.25})
    assert plan["memory.weight_ih_l0"].block_std["g"] == pytest.approx(1.592537 / 4, rel=1e-6)
    assert plan["body.0.weight"].reason == "followed by gelu: gain 1.5335, fan_in 12"


def test_edits_by_glob_name_function_and_question(plan: Plan) -> None:
    edited = plan.replace("body.*.weight", Zeros(), reason="a test")
    assert [row.name for row in edited if row.scheme == Zeros() and row.role == "linear"] == [
        "body.0.weight",
        "body.3.weight",
    ]
    assert edited["body.0.weight"].reason == "a test (before: followed by gelu: gain 1.5335, fan_in 12)"
    assert plan.keep("head.weight")["table.weight"].kept
    assert plan.replace(lambda node: node.feedback, Normal(0.5))["memory.weight_hh_l0"].scheme == Normal(0.5)
    assert plan.scale(["body.0.weight", "body.3.weight"], 0.5)["body.3.weight"].std == pytest.approx(
        plan["body.3.weight"].std / 2
    )
    assert plan.keep(role="norm_scale")["norm.weight"].kept


def test_a_question_for_a_block_edits_only_the_block(plan: Plan) -> None:
    edited = plan.replace("attention.*weight", Zeros(), role="query", reason="start with even attention")
    row = edited["attention.in_proj_weight"]
    assert isinstance(row.scheme, Packed)
    assert row.block_std == pytest.approx({"q": 0.0, "k": 0.25, "v": 0.25})
    assert row.reason.startswith("q: start with even attention (before: ")
    scaled = plan.scale("attention.*weight", 0.5, role="key")
    assert scaled["attention.in_proj_weight"].reason.startswith("k: scaled by 0.5 (before: ")


def test_what_blocks_get_is_shown_where_it_differs(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    edited = plan.scale("attention.in_proj_weight", 4.0, role="query")
    table, difference = str(edited), str(plan.diff(edited))
    for text in (table, difference, edited.explain("attention.in_proj_weight")):
        assert "std q 1, k 0.25, v 0.25" in " ".join(text.split())
    assert max(map(len, difference.splitlines())) <= 80
    assert all(len(line) <= 80 for line in table.splitlines() if "attention" in line or "std" in line)
    assert "std q" not in str(plan)


def test_packed_schemes_without_a_common_one_name_each_block() -> None:
    assert Packed.of(q=Zeros(), k=Normal(0.5)).label == "q: zeros, k: normal 0.5"
    assert Packed.of(i=Zeros(), f=Normal(0.5), g=Zeros()).label == "zeros, f: normal 0.5"


def test_questions_alone_can_choose(plan: Plan) -> None:
    assert plan.replace(scheme=Zeros(), role="query") == plan.replace(None, Zeros(), role="query")
    with pytest.raises(PlanError, match=r"(?s)no pattern and no question.*\*\.A_log.*role="):
        plan.replace(scheme=Zeros())
    with pytest.raises(PlanError, match=r"(?s)without a scheme.*scheme=Zeros"):
        plan.replace("body.0.weight")


def test_the_later_of_two_edits_wins_and_both_are_told(plan: Plan) -> None:
    edited = plan.replace("body.0.weight", Normal(0.1), reason="first").replace(
        "body.0.weight", Normal(0.2), reason="second"
    )
    assert edited["body.0.weight"].scheme == Normal(0.2)
    assert edited["body.0.weight"].reason.startswith("second (before: first (before: ")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda plan: plan.keep("body.1.weight"), "body.0.weight"),
        (lambda plan: plan.replace("*.bodyy.*", Zeros()), "a pattern that matches at least one"),
        (lambda plan: plan.keep(role="conv"), "roles here"),
        (lambda plan: plan.keep(role="querry"), "did you mean 'query'"),
        (lambda plan: plan.keep(colour="red"), "a field of a node"),
        (lambda plan: plan.keep(), "no pattern and no question"),
        (lambda plan: plan.scale("A_log", 2.0), "A_log: .*kept"),
        (
            lambda plan: plan.replace("memory.bias_hh_l0", Packed.of(i=Zeros())),
            r"memory\.bias_hh_l0.*blocks i, f, g, o",
        ),
        (lambda plan: plan.replace("body.0.weight", Packed.of(q=Zeros())), r"body\.0\.weight.*has no blocks"),
        (lambda plan: plan.replace("*in_proj_weight", Packed.of(q=Keep(), k=Keep(), v=Keep())), "q: kept, .*plan.keep"),
        (
            lambda plan: plan.keep(role="query"),
            r"q: kept, k: .*plan\.keep\('attention\.in_proj_weight'\), for all of it",
        ),
        (lambda plan: plan.keep(3), "the pattern 3.*a name, a glob"),
        (lambda plan: plan.keep([3]), "the pattern 3.*one function"),
        (lambda plan: plan.keep([lambda node: True]), "a name, a glob.*one function"),
        (lambda plan: plan.keep(re.compile("body.*")), r"lambda node: re\.search\('body"),
        (lambda plan: plan.keep(activation="gelo"), "a value that a parameter has.*did you mean 'gelu'"),
        (lambda plan: plan.keep(norm_after=True), "norm_after here: False"),
        (lambda plan: plan.scale("body.0.weight", "2"), "a factor of '2'.*a finite number"),
        (lambda plan: plan.scale("body.0.weight", None), "a factor of None"),
        (lambda plan: plan.scale("body.0.weight", 10**400), "beyond the range of floats"),
        (lambda plan: plan.scale("body.0.weight", 1e-320), r"body\.0\.weight.*zero in single precision.*Zeros"),
        (lambda plan: plan.scale("body.0.weight", 1e300), r"body\.0\.weight.*a finite number"),
        (lambda plan: plan.diff(3), "an int.*a plan"),
        (lambda plan: Plan.from_json(None), "a NoneType.*Plan.load"),
        (lambda plan: fanin.apply("init.json", nn.Identity()), "a str.*Plan.load"),
        (lambda plan: plan["body.0.wieght"], "did you mean 'body.0.weight'"),
    ],
)
def test_edits_that_cannot_be_meant_are_errors(plan: Plan, edit: object, words: str) -> None:
    with pytest.raises(PlanError, match="(?s)" + words):
        edit(plan)  # type: ignore[operator]


def test_a_name_that_looks_like_a_glob_is_a_name() -> None:
    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(nn.ModuleDict({"a[0]": nn.Linear(3, 3), "a0": nn.Linear(3, 3)}), recipe="he")
    for pattern in ("a[0].weight", ["a[0].weight"]):
        assert [row.name for row in plan.keep(pattern) if row.kept] == ["a[0].weight"]
    assert [row.name for row in plan.keep("a[0].*") if row.kept] == ["a0.weight", "a0.bias"]


@pytest.mark.parametrize("hand", [Plan.check, Plan.verify, fanin.apply])
def test_what_is_no_model_or_has_no_shapes_is_refused(hand: Callable[[Plan, Any], object]) -> None:
    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(nn.Sequential(nn.Linear(4, 8)), recipe="he")
        lazy = nn.Sequential(nn.LazyLinear(8))
    for wrong, words in (("x", "a str"), (nn.Linear, "the class Linear"), (lazy, r"0\.weight, a lazy(?s:.*)once")):
        with pytest.raises(InputsError, match=words):
            hand(plan, wrong)


def test_counts_and_articles_agree() -> None:
    one = nn.utils.skip_init(nn.Linear, 4, 1, bias=False)
    start = fanin.plan(one, recipe="he")
    assert "1 parameter by recipe he" in str(start)
    assert "1 parameter differs" in str(start.diff(start.replace("weight", Zeros())))
    fanin.apply(start, one)
    assert str(start.verify(one)) == "1 tensor is as planned"
    with pytest.raises(FaninError, match="gives an int"):
        fanin.plan(one, recipe=lambda graph: 3)  # type: ignore[arg-type,return-value]


def test_diff_shows_what_changed(plan: Plan) -> None:
    difference = plan.diff(plan.replace("body.0.weight", Zeros()))
    assert len(difference) == 1
    assert "body.0.weight" in str(difference)
    assert str(plan.diff(plan)) == "no difference"


def test_a_plan_is_the_same_whatever_the_size_of_the_batch() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    two, four = (fanin.plan(model, torch.zeros(size, 8)) for size in (2, 4))
    assert two.inputs != four.inputs
    assert two == four
    assert (hash(two), two.digest) == (hash(four), four.digest)
    other = two.replace("0.weight", Zeros())
    assert other != two
    assert other.digest != two.digest


def test_what_is_replaced_is_not_cited() -> None:
    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(nn.ModuleDict({"fc": nn.Linear(8, 8), "ln": nn.LayerNorm(8)}), recipe="llama")
    assert "touvron2023" in plan.cite()
    assert "touvron2023" in plan.scale("fc.weight", 0.5).replace("ln.*", Zeros()).cite()
    assert plan.replace("*", Zeros()).cite() == ""
    mine = Plan.of(plan.graph, "mine", lambda node: (Zeros(), "as it says there", ("sitzmann2020",)))
    assert "sitzmann2020" in mine.cite()


def test_cite_explain_and_summary(plan: Plan) -> None:
    assert "@inproceedings{he2015" in plan.cite()
    assert "fan_in 12" in plan.explain("body.0.weight")
    assert "he normal" not in plan.summary().splitlines()[0]
    assert f"{len(plan)} parameters" in plan.summary()


def broken(plan: Plan, change: object) -> str:
    record = json.loads(plan.to_json())
    change(record)  # type: ignore[operator]
    return json.dumps(record)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(schema=99), "schema 99"),
        (lambda r: r.update(fanin="graph"), "JSON that is not a plan"),
        (lambda r: r["rows"][1]["scheme"].update(scheme="Evil"), r"row 1 \(norm.weight\)|row 1 .*Evil"),
        (lambda r: r["rows"][1]["scheme"].update(std=-1), r"row 1 .*at least 0"),
        (lambda r: r["rows"][0].pop("reason"), r"row 0 .*'reason' is missing"),
        (lambda r: r["rows"][0].update(reason=""), "a sentence that says why"),
        (lambda r: r["rows"][0].update(role="__import__('os')"), "row 0"),
        (lambda r: r["rows"].append(r["rows"][0]), "two rows named"),
        (lambda r: r["rows"][1]["parameter"].update(aliases=[r["rows"][0]["name"]]), "two rows named"),
        (lambda r: r["rows"][1].update(name=""), "a row without a name"),
        (lambda r: r["rows"].insert(0, 7), r"row 0 \(\?\)"),
        (lambda r: r["rows"][0].update(shape="big"), "row 0"),
        (lambda r: r["rows"][0]["parameter"].update(surprise=1), "row 0.*surprise"),
    ],
)
def test_edited_and_hostile_files_give_the_row(plan: Plan, change: object, words: str) -> None:
    with pytest.raises(PlanError, match="(?s)" + words):
        Plan.from_json(broken(plan, change))


def test_a_key_may_not_be_repeated(plan: Plan) -> None:
    text = plan.to_json().replace('"schema"', '"rows": [], "schema"', 1)
    with pytest.raises(PlanError, match="the key 'rows' stands twice"):
        Plan.from_json(text)


def test_files_that_are_not_json(tmp_path: Path) -> None:
    file = tmp_path / "init.json"
    file.write_text("import os")
    with pytest.raises(PlanError, match="not JSON"):
        Plan.load(file)


def test_a_plan_is_written_whole_or_not_at_all(plan: Plan, model: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        model.body[3] = nn.Linear(24, 17)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with pytest.raises(PlanError, match=r"body\.3\.weight: the plan says 16×24, the model has 17×24"):
        fanin.apply(plan, model)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters())


def test_verify_sees_a_wrong_gain_and_a_nan(plan: Plan, model: nn.Module) -> None:
    fanin.apply(plan, model)
    assert plan.verify(model)
    with torch.no_grad():
        model.body[0].weight *= math.sqrt(2)
        model.norm.bias[3] = math.nan
    report = plan.verify(model)
    assert {check.name for check in report.problems} == {"body.0.weight", "norm.bias"}
    assert "body.0.weight" in str(report)


def test_a_function_is_a_recipe(model: nn.Module) -> None:
    def mine(graph: fanin.Graph) -> Plan:
        return Plan.of(graph, "mine", lambda node: (Normal(0.5), "because"))

    assert fanin.initialize(model, recipe=mine)["A_log"].scheme == Normal(0.5)
    with pytest.raises(RecipeError, match="did you mean 'xavier'"):
        fanin.plan(model, recipe="xaver")


def test_the_users_activation_fills_what_is_not_known(model: nn.Module) -> None:
    def scheme(activation: object) -> Scheme:
        return fanin.plan(model, recipe="he", activation=activation)["attention.out_proj.weight"].scheme  # type: ignore[arg-type]

    assert scheme("tanh").expected(fanin.Fans(16, 16)).std == pytest.approx(1.592537 / 4, rel=1e-6)
    assert scheme(nn.LeakyReLU(0.5)) == VarianceScaling(2 / 1.25)
    assert scheme(lambda x: 3 * x).expected(fanin.Fans(16, 16)).std == pytest.approx(1 / 12, rel=1e-6)
    with pytest.raises(FaninError, match=r"known|did you mean"):
        scheme("tanhh")


def test_same_values_whatever_the_order_of_construction() -> None:
    def build(flip: bool) -> nn.Module:
        net = nn.Module()
        for name in ("b", "a") if flip else ("a", "b"):
            net.add_module(name, nn.Linear(8, 8))
        return net

    with torch.random.fork_rng(devices=[]):
        one, two = build(False), build(True)
    fanin.initialize(one, recipe="he", seed=9)
    fanin.initialize(two, recipe="he", seed=9)
    assert torch.equal(one.a.weight, two.a.weight)
    assert not torch.equal(one.a.weight, one.b.weight)


def test_kept_rows_have_no_std(plan: Plan) -> None:
    assert plan["A_log"].scheme == Keep()
    assert plan["A_log"].std is None


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "rows: None": lambda plan: plan.update(rows=None),
    "without rows": lambda plan: plan.pop("rows"),
    "notes: 5": lambda plan: plan.update(notes=5),
    "inputs: \\[1\\]": lambda plan: plan.update(inputs=[1]),
    "a field 'zzz'": lambda plan: plan["rows"][0].update(zzz=1),
    r"row 0 \(5\): given: name: 5": lambda plan: plan["rows"][0].update(name=5),
    "shape .-4, 8.": lambda plan: plan["rows"][0].update(shape=[-4, 8]),
    "shape: .True, 8.": lambda plan: plan["rows"][0].update(shape=[True, 8]),
    "frozen: 'no'\nneeded: true or false": lambda plan: plan["rows"][0]["parameter"].update(frozen="no"),
    "aliases: 'abc'": lambda plan: plan["rows"][0]["parameter"].update(aliases="abc"),
    "padding_row: 'x'": lambda plan: plan["rows"][0]["parameter"].update(padding_row="x"),
    "sources: .5.": lambda plan: plan["rows"][0].update(sources=[5]),
    r"row 0 \(.*\): given: default: {}": lambda plan: plan["rows"][0]["parameter"].update(default={}),
    r"row 0 \(.*\): given: default: \[\]": lambda plan: plan["rows"][0]["parameter"].update(default=[]),
    r"row 0 \(.*\): given: captured: {}": lambda plan: plan["rows"][0]["parameter"].update(captured={}),
    r"row 0 \(.*\): given: padding_row 1\d*\nneeded: one of the 3": lambda plan: plan["rows"][0]["parameter"].update(
        padding_row=10**30
    ),
    r"row 0 \(.*\): given: reason '   '": lambda plan: plan["rows"][0].update(reason="   "),
    r"row 0 \(.*\): no source is known as 'x'": lambda plan: plan["rows"][0].update(sources=["x"]),
    r"row 9 \(.*\): given: a weight of shape \(\)": lambda plan: plan["rows"][9].update(shape=[]),
    r"row 9 \(.*\): (?s:.*)in_axis=\(99,\)": lambda plan: plan["rows"][9]["parameter"]["axes"].update(in_axis=[99]),
    r"row 9 \(.*\): given: groups: inf": lambda plan: plan["rows"][9]["parameter"]["axes"].update(groups=1e400),
    r"row 9 \(.*\): (?s:.*)blocks i, f, g, o": lambda plan: plan["rows"][9].update(
        scheme=Packed.of(q=Zeros(), k=Zeros()).to_dict()
    ),
    r"row 1 \(.*\):": lambda plan: plan["rows"][1].update(scheme={"scheme": "Normal", "std": 10**400}),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_a_hostile_file_is_refused_with_the_field(message: str, plan: Plan) -> None:
    record = json.loads(plan.to_json())
    HOSTILE[message](record)
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(record))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not JSON"):
        Plan.from_json("[" * 200_000)
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    for name in ("plan.json", "missing.json"):
        with pytest.raises(PlanError, match="cannot be read"):
            Plan.load(tmp_path / name)


def test_names_cannot_command_a_terminal(plan: Plan) -> None:
    record = json.loads(plan.to_json())
    record["rows"][0]["name"] = "fc\x1b[2J.weight"
    assert "\x1b" not in str(Plan.from_json(json.dumps(record)))


def test_every_pattern_of_several_has_to_match(plan: Plan) -> None:
    with pytest.raises(PlanError, match=r"nothing\.here"):
        plan.keep([plan.rows[0].name, "nothing.here"])


def test_the_role_of_a_query_is_that_of_a_weight() -> None:
    class Separate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))

    with torch.random.fork_rng(devices=[]):
        plan = fanin.plan(Separate(), torch.zeros(2, 5, 16))
    edited = plan.replace(None, Normal(0.02), role="query")
    assert [row.name for row in edited if row.scheme == Normal(0.02)] == ["q.weight"]
    with pytest.raises(PlanError, match="key, linear, query, value"):
        plan.keep(role="embedding")


def test_a_check_tells_what_apply_would(plan: Plan, model: nn.Module) -> None:
    plan.check(model)
    for wrong in (plan.replace("norm.bias", Orthogonal()), plan.replace("norm.bias", Normal(1e39))):
        with pytest.raises(ApplyError, match=r"norm\.bias cannot be written"):
            wrong.check(model)


def test_a_tie_that_the_plan_does_not_have_is_named(model: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        loose = Mixed()
        loose.head = nn.Linear(16, 30, bias=False)
    with pytest.raises(PlanError, match=r"head\.weight: the model ties it to table\.weight"):
        fanin.plan(loose, recipe="he").check(model)


def test_shapes_that_differ_are_told_once(plan: Plan) -> None:
    with torch.random.fork_rng(devices=[]):
        model = Mixed()
        model.norm = nn.LayerNorm(8)
    with pytest.raises(PlanError) as found:
        plan.check(model)
    assert str(found.value).count("norm.weight") == 1


def test_plans_that_say_the_same_do_not_differ() -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    auto, he = (fanin.plan(model, torch.zeros(2, 8), recipe=recipe) for recipe in ("auto", "he"))
    assert auto["0.weight"].scheme == he["0.weight"].scheme


def test_what_a_recipe_gives_has_to_be_a_plan(plan: Plan) -> None:
    with torch.random.fork_rng(devices=[]):
        model = nn.Linear(4, 4)
    with pytest.raises(RecipeError, match="gives an int"):
        fanin.plan(model, recipe=lambda graph: 5)  # type: ignore[arg-type, return-value]
    with pytest.raises(RecipeError, match=r"fanin\.apply\(plan, model\)"):
        fanin.plan(model, recipe=plan)  # type: ignore[arg-type]
    with pytest.raises(ApplyError, match="cpuu"):
        fanin.initialize(model, device="cpuu")


def test_what_is_no_scheme_module_or_name_is_refused(plan: Plan, model: nn.Module) -> None:
    for wrong, instead in ((Zeros, r"schemes\.Zeros"), ("zeros", "he_normal"), (0.02, "Constant")):
        with pytest.raises(SchemeError, match=instead):
            plan.replace("norm.weight", wrong)  # type: ignore[arg-type]
        with pytest.raises(SchemeError, match=instead):
            fanin.fill_(torch.empty(4, 4), wrong)  # type: ignore[arg-type]
    with pytest.raises(InputsError, match="the class Linear"):
        fanin.plan(nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"did you mean 'norm\.weight'"):
        fanin.apply(plan, model, names={"norm.weigth": "norm.weight"})


def test_rows_are_asked_for_by_name(plan: Plan) -> None:
    row = plan.rows[0]
    assert row.name in plan
    assert row in plan
    assert 3 not in plan
    with pytest.raises(PlanError, match=r"plan\[Row\].*\n.*a parameter's name"):
        plan[row]  # type: ignore[index]
