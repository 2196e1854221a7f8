"""Config: precedence, one report for all mistakes, nearest key, round trip."""

import errno
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from pipeline import retry
from pipeline.config import Section, config_hash, load_config, parse_command_line, render_help, to_yaml
from pipeline.errors import InputError, RunError
from tests.pipeline.faults import failing


class Inner(Section):
    lr: float = Field(default=5e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW betas."""


class Root(Section):
    name: str
    """Name of the run."""
    optim: Inner = Inner()
    """The optimizer."""
    extra: list[Inner] = []
    """More of them."""


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_later_files_and_overrides_win(tmp_path: Path) -> None:
    files = [write(tmp_path, "a.yaml", "name: a\noptim: {lr: 1.0}"), write(tmp_path, "b.yaml", "name: b")]
    config = load_config(Root, files, ["optim.lr=1e-3"])
    assert (config.name, config.optim.lr, config.optim.betas) == ("b", 1e-3, (0.9, 0.98))


def test_all_mistakes_in_one_report_with_origin_and_nearest_key(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "optim: {lr: -1, beta: [0, 1]}")
    with pytest.raises(InputError) as caught:
        load_config(Root, [file], ["optm.lr=3"])
    message = str(caught.value)
    assert "4 mistakes" in message
    assert "name: required" in message
    assert "optim.beta: unknown key" in message and "'optim.betas'" in message
    assert "optim.lr" in message and "(got -1)" in message and "a.yaml" in message
    assert "override 'optm.lr=3'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", "not valid YAML"), ("name: a\nname: b", "appears twice"), ("- 1", "must be a mapping")],
)
def test_broken_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_config(Root, [write(tmp_path, "bad.yaml", text)])


def test_deep_nesting_is_one_line(tmp_path: Path) -> None:
    for text in ("a: " + "[" * 1_200, "{a: " * 1_200):
        with pytest.raises(InputError, match=r"deep|not valid YAML") as caught:
            load_config(Root, [write(tmp_path, "deep.yaml", text)])
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(InputError, match="nested too deeply"):
        load_config(Root, [], ["extra=" + "[" * 1_200])


def test_a_file_system_that_fails_is_tried_again_and_is_no_wrong_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "PAUSES_S", (0.0, 0.0))
    file = write(tmp_path, "a.yaml", "name: a")
    for number in (errno.EIO, errno.ESTALE, errno.EMFILE):
        with failing("a.yaml", number, times=2):
            assert load_config(Root, [file]).name == "a"
        with failing("a.yaml", number), pytest.raises(RunError, match=rf"cannot read {file}"):
            load_config(Root, [file])
    with failing("a.yaml", errno.EACCES) as failed, pytest.raises(InputError, match="Permission denied; check its rig"):
        load_config(Root, [file])
    assert len(failed) == 1, "rights do not come back by waiting"


def test_missing_file_unknown_option_and_stray_word() -> None:
    with pytest.raises(InputError, match=r"cannot read config nowhere\.yaml"):
        load_config(Root, ["nowhere.yaml"])
    for word in ("--lr", "stray"):
        with pytest.raises(InputError, match=word):
            parse_command_line(Root, [word], program="x", about="y")


def test_yaml_round_trip_keeps_the_hash(tmp_path: Path) -> None:
    config = load_config(Root, [], ["name=n", "extra=[{lr: 2}]"])
    again = load_config(Root, [write(tmp_path, "r.yaml", to_yaml(config))])
    assert again == config and config_hash(again) == config_hash(config)
    assert config_hash(load_config(Root, [], ["name=m", "extra=[{lr: 2}]"])) != config_hash(config)


def test_help_shows_every_option_with_default_and_meaning() -> None:
    text = render_help(Root, program="prog", about="About.")
    for part in ("name: str = (required)", "optim.lr: float = 5e-06", "Peak learning rate.", "extra.*.lr"):
        assert part in text


class Switches(Section):
    mode: Literal["auto", "off", "on"] = "auto"
    """A word."""
    capture: Literal["auto"] | bool = "auto"
    """A word or a switch."""
    jitter: bool = True
    """A switch."""
    name: str = ""
    """Any text."""
    words: dict[str, str] = {}
    """Texts by name."""


@pytest.mark.parametrize("in_file", [True, False])
def test_off_on_yes_and_no_mean_what_their_field_wants(tmp_path: Path, in_file: bool) -> None:
    values = {"mode": "off", "capture": "on", "jitter": "no", "name": "yes"}
    if in_file:
        text = "".join(f"{key}: {value}\n" for key, value in values.items()) + "words: {on: off, y: n}\n"
        config = load_config(Switches, [write(tmp_path, "a.yaml", text)], [])
        assert config.words == {"on": "off", "y": "n"}
    else:
        config = load_config(Switches, [], [f"{key}={value}" for key, value in values.items()])
    assert (config.mode, config.capture, config.jitter, config.name) == ("off", True, False, "yes")
    assert load_config(Switches, [write(tmp_path, "b.yaml", to_yaml(config))], []) == config


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "false", "False", "FALSE"])
def test_true_and_false_are_booleans(word: str) -> None:
    assert load_config(Switches, [], [f"capture={word}"]).capture is (word.lower() == "true")
