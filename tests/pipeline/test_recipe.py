from __future__ import annotations

import pytest

from tersor.errors import InvalidArgument
from tersor.pipeline.defaults import method_options
from tersor.pipeline.recipe import load_recipe, parse_recipe


def test_listed_options_are_one_level_a_value():
    recipe = parse_recipe({"levels": [{"method": "gptq", "bits": [2, 3], "group_size": [32, 64]}], "budget": "1MB"})
    assert recipe.expanded() == [
        ("gptq", {"bits": 2, "group_size": 32}), ("gptq", {"bits": 2, "group_size": 64}),
        ("gptq", {"bits": 3, "group_size": 32}), ("gptq", {"bits": 3, "group_size": 64}),
    ]  # fmt: skip


def test_duplicate_levels_are_listed_once():
    recipe = parse_recipe({"levels": [{"method": "rtn", "bits": [3, 3]}, {"method": "rtn", "bits": 3}]})
    assert recipe.expanded() == [("rtn", {"bits": 3})]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"levels": [{"method": "gtpq"}]}, "unknown method 'gtpq'"),
        ({"levels": [{"method": "gptq", "bit": 3}]}, "takes no option 'bit'"),
        ({"levels": [{"method": "gptq"}], "budgett": 3}, "unknown key 'budgett'; allowed are"),
        ({"levels": [{"method": "gptq"}], "calibration": {"token": 3}}, "unknown key 'calibration.token'; allowed are text, tokens"),
        ({"levels": [{"method": "gptq"}], "calibration": {"tokens": -3}}, "calibration.tokens"),
        ({"levels": []}, "levels is empty"),
        ({"levels": [{"method": "gptq"}], "search": {"stages": [[2, 64]]}}, "one survivor"),
        ({"levels": [{"method": "gptq"}], "search": {"method": "magic"}}, "evopress"),
        ({"levels": [{"method": "gptq"}], "search": {"method": "sparse", "generations": 2}}, "at least 3 models"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_are_one_sentence_that_names_the_key(data, said):
    with pytest.raises(InvalidArgument) as caught:
        parse_recipe(data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("levels", [{"method": "gptq", "bits": [2, 3]}, [{"method": "gptq"}, {"method": "rtn"}]], ids=["values", "methods"])
def test_several_levels_wait_for_a_budget(levels):
    recipe = parse_recipe({"levels": levels})
    with pytest.raises(InvalidArgument, match="several levels need a budget"):
        recipe.check_decided()
    recipe.model_copy(update={"budget": "3bpw"}).check_decided()


@pytest.mark.parametrize(
    ("method", "changes", "share"),
    [
        ("gptq", {}, 0.25),
        ("gptq", {"calibration": {"correction": 0}}, 0.0),
        ("gptq", {"propagate": "dense"}, 0.0),
        # A method that needs no text is not given one for this alone, unless the user asks for it.
        ("rtn", {}, 0.0),
        ("rtn", {"calibration": {"correction": 0.5}}, 0.5),
    ],
)
def test_what_was_lost_is_made_up_for_where_there_is_text(method, changes, share):
    recipe = parse_recipe({"levels": {"method": method, "bits": 3}, **changes})
    assert recipe.correction == share
    assert recipe.needs_inputs == (method == "gptq" or share > 0)


def test_dense_blocks_leave_nothing_to_make_up_for():
    with pytest.raises(InvalidArgument, match="it needs propagate: compressed"):
        parse_recipe({"levels": {"method": "gptq"}, "propagate": "dense", "calibration": {"correction": 0.5}})


def test_options_of_a_method_are_read_as_in_a_recipe():
    written = ["keep=0.5", "act_order=true", "bits=[3, 4]", "base=gptq", "base_options={bits: 2, group_size: 4}"]
    read = {"keep": 0.5, "act_order": True, "bits": [3, 4], "base": "gptq", "base_options": {"bits": 2, "group_size": 4}}
    assert method_options(written) == read


@pytest.mark.parametrize("written", [["keep"], ["=3"], ["keep="], ["bits=[3"], ["keep=1", "keep=2"]])
def test_options_that_say_nothing_are_refused(written):
    with pytest.raises(InvalidArgument, match="name=value"):
        method_options(written)


def test_yaml_round_trip(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("levels:\n  method: gptq\n  bits: [2, 3, 4]\nbudget: 60MB\nsearch: {generations: 5}\n")
    recipe = load_recipe(path)
    assert [options["bits"] for _, options in recipe.expanded()] == [2, 3, 4]
    assert recipe.search.generations == 5


@pytest.mark.parametrize("content", ["levels: [", "- just\n- a list\n", "\x00\x01"], ids=["broken", "list", "binary"])
def test_what_is_not_a_recipe_is_refused_by_name(tmp_path, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(InvalidArgument, match=r"recipe\.yaml"):
        load_recipe(path)


def test_a_missing_recipe_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidArgument, match="No such file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(("tokens", "last"), [(64, 64), (1024, 1024), (2048, 2048), (9000, 2048)])
def test_the_usual_stages_ask_for_no_more_than_there_is(tokens, last):
    search = parse_recipe({"levels": {"method": "gptq"}, "search": {"tokens": tokens}}).search
    assert search.stages == ((3, min(256, tokens)), (1, last))


def test_stages_that_are_given_are_kept_or_refused():
    with pytest.raises(InvalidArgument, match="a stage asks for 512 tokens but tokens is 256"):
        parse_recipe({"levels": {"method": "gptq"}, "search": {"tokens": 256, "stages": [[1, 512]]}})
