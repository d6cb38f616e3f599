"""`base:` and `smoke:` in recipe files."""

import dataclasses

import pytest

from opencrate.recipe.load import load_recipe, recipe_yaml, stated_parameters


@pytest.fixture
def write(tmp_path):
    """Write `<name>.yaml`; its path."""

    def file(name, text):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return file


def test_child_changes_its_keys_only(write):
    child = load_recipe(write("child", "base: digits\ntraining: {seed: 3}\nmodel: {config: {pool: cls}}\n"))
    digits = load_recipe("digits")
    assert child.name == "child" and child.description == ""
    assert child.training == dataclasses.replace(digits.training, seed=3)
    assert child.model == dataclasses.replace(digits.model, config={"pool": "cls"})
    assert child.data == digits.data


def test_chain_goes_by_relative_path_and_the_nearest_wins(write, tmp_path):
    write("families/grandparent", "training: {seed: 1, num_train_epochs: 7, weight_decay: 0.3}\n")
    write("parent", "base: families/grandparent.yaml\ntraining: {seed: 2, num_train_epochs: 8}\n")
    child = write("deep/child", "base: ../parent.yaml\ntraining: {seed: 3}\n")
    training = load_recipe(child, ["training.max_grad_norm=9"]).training
    assert (training.seed, training.num_train_epochs, training.weight_decay) == (3, 8, 0.3)
    assert training.max_grad_norm == 9


def test_model_configurations_are_merged_field_by_field(write):
    write("parent", "model: {size: laptop, config: {pool: cls, ista_lambda: 0.2}}\nsmoke: {model.config.pool: mean}\n")
    child = write("child", "base: parent.yaml\nmodel: {config: {pool: mean, ista_step_size: 0.3}}\n")
    assert load_recipe(child).model.config == {"pool": "mean", "ista_lambda": 0.2, "ista_step_size": 0.3}
    empty = write("empty", "base: parent.yaml\nmodel: {config: {}}\n")
    assert load_recipe(empty).model.config == {}


def test_another_model_type_starts_its_section_anew(write):
    write("parent", "model: {size: laptop, config: {pool: cls}}\nsmoke: {model.config.pool: mean, training.seed: 9}\n")
    child = write("child", "base: parent.yaml\nmodel: {type: vit, config: {hidden_size: 24}}\n")
    model = load_recipe(child, smoke=True).model
    assert (model.type, model.size, model.config) == ("vit", None, {"hidden_size": 24})
    assert load_recipe(child, smoke=True).training.seed == 9


def test_resolved_form_has_no_base(write, tmp_path):
    recipe = load_recipe(write("child", "base: cifar10\ntraining: {seed: 3}\n"))
    text = recipe_yaml(recipe)
    assert not any(line.startswith(("base", "smoke", "parameters")) for line in text.splitlines())
    assert load_recipe(write("elsewhere", text)) == recipe


def test_smoke_form_is_dotted_or_nested_and_inherited(write):
    write("parent", "smoke:\n  training.max_steps: 2\n  data: {image_size: 32, path: a}\n  model.config.pool: mean\n")
    child = write("child", "base: parent.yaml\ntraining: {max_steps: 50}\nsmoke: {data: {path: b}}\n")
    plain, smoke = load_recipe(child), load_recipe(child, smoke=True)
    assert plain.training.max_steps == 50 and plain.data.image_size == 224 and plain.model.config == {}
    assert smoke.training.max_steps == 2 and smoke.data.image_size == 32 and smoke.data.path == "b"
    assert smoke.model.config == {"pool": "mean"}
    assert load_recipe(child, ["training.max_steps=4"], smoke=True).training.max_steps == 4


def test_stated_parameters_are_the_files_own(write):
    assert stated_parameters("digits") == 172138
    assert stated_parameters(write("child", "base: digits\n")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: bad.yaml\n", ["bad.yaml -> bad.yaml", "'base' leads back"]),
        ("base: other.yaml\n", ["bad.yaml -> other.yaml -> bad.yaml"]),
        ("base: digit\n", ["bad.yaml: 'base'", "no recipe 'digit'", "did you mean 'digits'"]),
        ("base: [digits, cifar10]\n", ["bad.yaml: 'base' must be one recipe's name or file"]),
        ("smoke: 3\n", ["bad.yaml: 'smoke' must be a mapping", "3"]),
        ("smoke: {training.sed: 1}\n", ["bad.yaml, smoke", "'training.sed'", "did you mean 'training.seed'"]),
        ("smoke: {trainin: {seed: 1}}\n", ["bad.yaml, smoke", "'trainin'", "did you mean 'training'"]),
        ("smoke: {base: digits}\n", ["bad.yaml, smoke", "'base'"]),
        ("parameters: many\n", ["bad.yaml: 'parameters' must be a number"]),
        ("base: digits\ntraining: {sed: 1}\n", ["bad.yaml: unknown key 'training.sed'"]),
        ("base: digits\ntraining: {seed: -1}\n", ["bad.yaml: 'training.seed' must be a whole number of at least 0"]),
        ("base: wrong.yaml\n", ["wrong.yaml: 'training.weight_decay' must be a number of at least 0"]),
    ],
)
def test_bad_file_is_one_clear_error(write, text, words):
    write("other", "base: bad.yaml\n")
    write("wrong", "training: {weight_decay: -1}\n")
    path = write("bad", text)
    with pytest.raises(ValueError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_smoke_values_are_checked_where_they_stand(write):
    path = write("bad", "smoke: {training.seed: -1}\n")
    assert load_recipe(path).training.seed == 0
    with pytest.raises(ValueError, match=r"bad.yaml, smoke: 'training.seed' must be a whole number of at least 0"):
        load_recipe(path, smoke=True)
    with pytest.raises(ValueError, match=r"plain.yaml: no smoke form"):
        load_recipe(write("plain", "training: {seed: 1}\n"), smoke=True)
