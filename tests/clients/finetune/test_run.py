"""Runs over a swarm: they learn, they go on where they stopped, and they say what is wrong."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from clients.finetune.adapter import with_adapter
from clients.finetune.data import Row
from clients.finetune.run import Step, Tuning
from clients.finetune.settings import METHODS, Settings
from clients.finetune.telling import draw, next_command, plot
from clients.model import SwarmModelForCausalLM
from swarm.errors import MissingBlocks, SwarmError, UsageError
from tests.clients.test_engines import Swarm

ROWS = [Row(tuple(range(5 + index, 17 + index)), (False,) * 4 + (True,) * 8) for index in range(8)]


class Stopped(Exception):
    """Somebody pressed Ctrl-C."""


def settings(folder: Path, **options: Any) -> Settings:
    common = {"model": "tiny", "data": "rows.jsonl", "output": folder, "steps": 6, "batch": 4, "learning_rate": 1e-2}
    return Settings(**{**common, "save_every": 2, "evaluate_every": 3, "held_out": 0.25, **options})


def tuned(model: SwarmModelForCausalLM, settings: Settings) -> Any:
    """As a new process would make it."""
    torch.manual_seed(5)
    return with_adapter(model, settings)


def run(model: SwarmModelForCausalLM, settings: Settings, stop_after: int | None = None) -> list[Step]:
    """The steps it made; the model is as before afterwards."""
    adapted = tuned(model, settings)
    steps: list[Step] = []

    def tell(step: Step) -> None:
        steps.append(step)
        if step.step == stop_after:
            raise Stopped

    try:
        Tuning(settings, adapted, ROWS).run(tell)
    except Stopped:
        pass
    finally:
        adapted.unload()
    return steps


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_the_loss_falls(method: str, model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    steps = run(model, settings(tmp_path / "out", method=method, learning_rate=3e-2, steps=8))
    assert steps[-1].loss < steps[0].loss
    assert steps[-1].evaluation is not None


def test_rows_held_out_are_evaluated_before_the_first_step_too(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    plan = settings(tmp_path / "out")
    tuning = Tuning(plan, tuned(model, plan), ROWS)
    tuning.run(lambda _: None)
    assert [step for step, _ in tuning.progress.evaluations] == [0, 3, 6]


def test_a_seed_makes_the_same_adapter_again(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        torch.rand(1)  # whatever else is drawn in a process
        adapted = with_adapter(model, settings(tmp_path, seed=seed))
        found.append(torch.cat([p.detach().flatten() for p in adapted.parameters() if p.requires_grad]))
        adapted.unload()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_run_that_stopped_goes_on_as_if_it_had_not(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    whole = run(model, settings(tmp_path / "whole"))
    first = run(model, settings(tmp_path / "parts"), stop_after=5)
    second = run(model, settings(tmp_path / "parts"))
    assert [step.step for step in second] == [5, 6]
    assert [step.loss for step in first[:4] + second] == pytest.approx([step.loss for step in whole], abs=1e-5)


@pytest.mark.parametrize("other", [{"rank": 4}, {"model": "another"}, {"seed": 1}])
def test_another_run_in_the_same_folder_is_refused(
    other: dict[str, Any], model: SwarmModelForCausalLM, tmp_path: Path
) -> None:
    run(model, settings(tmp_path / "out"), stop_after=2)
    with pytest.raises(UsageError, match="holds another run"):
        run(model, settings(tmp_path / "out", **other))


def test_a_checkpoint_that_is_none_is_named(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "run.pt").write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="remove it to begin again"):
        run(model, settings(tmp_path))


def test_a_loss_that_is_no_number_ends_the_run_and_loses_nothing(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    plan = settings(tmp_path / "out")
    run(model, plan, stop_after=2)
    adapted = tuned(model, plan)
    tuning = Tuning(plan, adapted, ROWS)
    broken = torch.full_like(model.lm_head.weight, float("nan"))
    model.lm_head.weight = torch.nn.Parameter(broken, requires_grad=False)
    with pytest.raises(SwarmError, match="lower --learning-rate"):
        tuning.run(lambda _: None)
    assert Tuning(plan, adapted, ROWS).progress.step == 2


class Steep(torch.autograd.Function):
    """Its value is that of its input, its gradient beyond all bounds."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0] * torch.tensor(1e38)


def test_a_gradient_that_is_no_number_changes_nothing(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    plan = settings(tmp_path / "out", method="prompt")
    adapted = tuned(model, plan)
    tuning = Tuning(plan, adapted, ROWS)
    before = [parameter.clone() for parameter in adapted.parameters() if parameter.requires_grad]
    adapted.prompt_encoder["default"].register_forward_hook(lambda *given: Steep.apply(Steep.apply(given[2])))
    with pytest.raises(SwarmError, match="gradient is not finite: lower --learning-rate"):
        tuning.run(lambda _: None)
    after = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_run_that_diverged_goes_on_with_a_lower_rate_from_its_checkpoint(
    model: SwarmModelForCausalLM, tmp_path: Path
) -> None:
    run(model, settings(tmp_path / "out"), stop_after=2)
    with pytest.raises(SwarmError, match=r"lower (the|--)"):
        run(model, settings(tmp_path / "out", learning_rate=1e38, save_every=1))
    assert run(model, settings(tmp_path / "out", learning_rate=1e-3))[0].step == 3


def test_a_swarm_that_fails_loses_no_step(swarm: Swarm, model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    plan = settings(tmp_path / "out", save_every=100)
    adapted = tuned(model, plan)
    tuning = Tuning(plan, adapted, ROWS)

    def tell(step: Step) -> None:
        if step.step == 3:
            swarm.kill(0)

    with pytest.raises(MissingBlocks):
        tuning.run(tell)
    assert (tuning.saved, Tuning(plan, adapted, ROWS).progress.step) == (3, 3)


def test_weights_that_changed_under_the_same_name_are_another_run(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    plan = settings(tmp_path / "out")
    adapted = tuned(model, plan)
    Tuning(plan, adapted, ROWS, "digest of then").save()
    with pytest.raises(UsageError, match="base model digest of then there and digest of now here"):
        Tuning(plan, adapted, ROWS, "digest of now")


def test_an_adapter_that_somebody_else_made_is_not_written_over(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="another --output"):
        run(model, settings(tmp_path))


def test_a_run_that_gets_no_better_ends_early(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    plan = settings(tmp_path / "out", learning_rate=1e-12, steps=50, evaluate_every=1, stop_after=2)
    assert len(run(model, plan)) < 10


def test_targets_that_are_not_there_are_told_those_that_are(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"z_proj.*q_proj"):
        with_adapter(model, settings(tmp_path, targets="z_proj"))


@pytest.mark.parametrize("wrong", [{"method": "magic"}, {"held_out": 1.0}, {"learning_rate": 0.0}])
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--"):
        settings(tmp_path, **wrong)


def test_a_curve_falls_as_its_losses_do(tmp_path: Path) -> None:
    assert draw([3.0, 2.0, 1.0]) == "█▅▁"
    assert draw([]) == ""
    assert plot([3.0, 2.0, 1.0], [(2, 2.5)], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_every_method_has_an_adapter(model: SwarmModelForCausalLM, tmp_path: Path) -> None:
    assert set(METHODS) == {"lora", "ia3", "prompt", "prefix"}
    adapted = with_adapter(model, settings(tmp_path, method="prompt"))
    assert adapted.active_peft_config.num_virtual_tokens == 16


def test_the_next_command_can_be_copied_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    told = next_command(settings(folder), ["/memory/a", "/memory/b"])
    command = shlex.split(told.partition(": ")[2])
    assert command == ["swarm", "chat", "tiny", "--adapter", str(folder), "--initial-peers", "/memory/a,/memory/b"]
    assert "PeftModel.from_pretrained" in next_command(settings(folder, method="prompt"), ["/memory/a"])
