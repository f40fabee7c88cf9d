"""Settings: presets, then file, then flags; and what is wrong is said."""

import dataclasses
import json

import pytest

from jetkern.cli import settings as command_line
from jetkern.model.presets import SIZES, model_preset
from jetkern.training.checkpoints import RunError
from jetkern.training.config import FinetuneSettings, PretrainSettings, SettingsError, as_dict
from jetkern.training.defaults import finetune_defaults, pretrain_defaults, size_of
from jetkern.training.runs import Run

PATHS = ["--data", "shards", "--out", "run"]


def parse(defaults, flags, description=""):
    return command_line.parse(defaults, flags, name="train", description=description)


def pretrain(*flags):
    return parse(pretrain_defaults, [*PATHS, *flags])


def finetune(*flags):
    return parse(finetune_defaults, [*PATHS, *flags])


def test_presets_are_those_of_the_study():
    micro = pretrain("--objective", "classifier+generator")
    assert (micro.optim.optimizer, micro.optim.lr, micro.optim.weight_decay) == ("lion", 1e-3, 0.01)
    assert (micro.optim.batch_size, micro.optim.steps, micro.optim.warmup_steps) == (
        8192,
        500_000,
        1000,
    )
    assert micro.optim.betas == (0.95, 0.99)
    small = pretrain("--preset", "small", "--objective=classifier")
    assert (small.optim.lr, small.optim.weight_decay) == (5e-4, 0.3)
    for flags in (["--preset", "medium", "--objective", "classifier"], [], ["--objective", "mpm"]):
        settings = pretrain(*flags)
        assert (settings.optim.optimizer, settings.optim.betas) == ("ranger", (0.95, 0.999))
    lion = pretrain("--optimizer", "lion").optim
    assert (lion.optimizer, lion.lr, lion.betas) == ("lion", 1e-3, (0.95, 0.99))
    assert pretrain("--optimizer=ranger", "--objective=classifier").optim.betas == (0.95, 0.999)
    scratch = finetune("--preset", "small")
    assert (scratch.optim.lr, scratch.optim.steps, scratch.optim.batch_size) == (5e-4, 17_565, 1024)
    assert finetune("--num-jets", "1000").optim.batch_size == 512


def test_presets_of_masked_models(tmp_path):
    v1, v2 = pretrain("--preset", "mpm-v1"), pretrain("--preset=mpm-v2", "--target", "cfm")
    assert (v1.objective, v1.masked.target, v1.masked.mask_fraction) == ("mpm", "tokens", (0.3,))
    assert (v1.optim.optimizer, v1.optim.lr, v1.optim.steps) == ("adamw", 1e-4, 1_953_125)
    assert (v2.masked.target, v2.masked.decoder_layers, v2.masked.registers) == ("cfm", 4, 8)
    assert (v2.optim.batch_size, v2.optim.weight_decay, v2.feature_drop) == (1000, 1e-5, 0)
    assert pretrain("--preset", "mpm-v2", "--lr", "2e-4").optim.lr == 2e-4
    config = model_preset("mpm-v2", ["mpm"], decoder_dim=128, decoder_heads=4)
    assert (config.dim, config.layers, size_of(dataclasses.asdict(config))) == (512, 8, "mpm-v2")
    run = Run(tmp_path / "run")
    run.save(1, {"step": 1}, {"model_config": dataclasses.asdict(config)})
    run.close()
    source = ["--from", str(tmp_path / "run")]
    fine, few = finetune(*source), finetune(*source, "--num-jets", "500")
    assert (fine.thaw_at, fine.catch_up, fine.optim.lr, few.thaw_at) == (5000, 5000, 1e-4, 100)
    assert finetune(*source, "--probe", "attention").probe == "attention"
    assert finetune("--preset", "mpm-v2").optim.lr == 1e-3


def test_size_of_a_checkpoint_sets_the_defaults(tmp_path):
    run = Run(tmp_path / "run")
    config = SIZES["small"] | {"head_layers": 2}
    run.save(1, {"step": 1}, {"model_config": config})
    run.close()
    settings = finetune("--from", str(tmp_path / "run"))
    assert (settings.optim.lr, settings.optim.warmup_steps) == (5e-6, 1028)
    assert settings.source == tmp_path / "run"
    assert settings.preset is None
    assert size_of(config) == "small"
    assert size_of(config | {"dim": 100}) is None
    with pytest.raises(RunError, match="neither a run"):
        finetune("--from", str(tmp_path / "absent"))


@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_flags_beat_the_file_and_the_file_beats_the_preset(tmp_path, suffix):
    path = tmp_path / f"settings{suffix}"
    if suffix == ".toml":
        path.write_text(
            'preset = "small"\nobjective = "classifier"\nperturbed = false\n'
            "[optim]\nlr = 0.5\nsteps = 77\nwarmup-steps = 7\nbetas = [0.1, 0.2]\n"
        )
    else:
        optim = {"lr": 0.5, "steps": 77, "warmup_steps": 7, "betas": [0.1, 0.2]}
        content = {"preset": "small", "objective": "classifier", "perturbed": False} | optim
        path.write_text(json.dumps(content))
    settings = pretrain("--config", str(path), "--steps", "88")
    assert settings.preset == "small"
    assert settings.optim.weight_decay == 0.3
    assert settings.optim.lr == 0.5
    assert settings.optim.steps == 88
    assert settings.optim.betas == (0.1, 0.2)
    assert settings.perturbed is False


def test_recorded_settings_are_a_settings_file(tmp_path):
    settings = pretrain("--steps", "5", "--warmup-steps", "1", "--val-jets", "None", "--seed", "3")
    run = Run(tmp_path / "run")
    run.open(as_dict(settings), {})
    run.close()
    path = str(tmp_path / "run" / "config.json")
    assert parse(pretrain_defaults, ["--config", path]) == settings


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lrr", "3"], "--lr"),
        (["--lr", "fast"], "fast"),
        (["--lr", "-1"], "lr must be above 0"),
        (["--preset", "tiny"], "tiny"),
        (["--optimizer", "sgd"], "sgd"),
        (["--warmup-steps", "10", "--steps", "5"], "warmup_steps must lie in 0..5"),
        (["--val-every", "0"], "val_every"),
        (["--micro-batch", "0"], "micro_batch"),
        (["--betas", "1", "0.5"], "betas"),
        (["--num-jets", "0"], "num_jets"),
        (["--ema-decay", "1"], "ema_decay"),
    ],
)
def test_wrong_flags_end_with_code_2_and_a_reason(flags, message, capsys):
    with pytest.raises((SystemExit, SettingsError)) as caught:
        pretrain(*flags)
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    else:
        assert message in str(caught.value)


def test_a_wrong_flag_is_named_before_those_that_are_missing(capsys):
    with pytest.raises(SystemExit):
        parse(pretrain_defaults, ["--lrr", "3", "--data=x"])
    error = capsys.readouterr().err
    assert "unrecognized arguments: --lrr (did you mean --lr?)" in error
    assert "--out" not in error


def test_missing_paths_are_asked_for(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(pretrain_defaults, [])
    assert caught.value.code == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "lrr = 1", r"a\.toml has an unknown setting 'lrr'; did you mean lr\?"),
        ("a.toml", "lr = ", r"a\.toml is not valid"),
        ("a.json", "[1]", r"a\.json must hold settings"),
        ("a.yaml", "", r"ends in \.toml or \.json"),
    ],
)
def test_wrong_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match=message):
        pretrain("--config", str(tmp_path / name))
    with pytest.raises(SettingsError, match="cannot be read"):
        pretrain("--config", str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("defaults", [pretrain_defaults, finetune_defaults])
def test_every_setting_is_explained(defaults, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(defaults, ["--help"], description="Does it.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "Does it." in text
    assert "--config FILE" in text
    for name in ("data", "out", "lr", "val-every", "save-every", "preset"):
        assert f"--{name}" in text
    assert "peak learning rate" in text


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        pretrain().seed = 1
    assert isinstance(pretrain(), PretrainSettings)
    assert isinstance(finetune(), FinetuneSettings)
