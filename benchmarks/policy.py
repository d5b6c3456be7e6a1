"""Our sampler beside HF `generate`, and our packed training step beside a plain padded loop.

    python benchmarks/policy.py                      both, some four minutes on two cores
    python benchmarks/policy.py --adapter DIR        sample with a trained checkpoint
    python benchmarks/policy.py --json               write benchmarks/baselines/policy.json as well

Rounds are interleaved: every round runs each way once, so other load slows all of them. Ratios are taken
within a round. Ratios hold across machines, times do not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "babylon_rl_tests" / "training")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812  torch's own name for it
from training_factories import a_batch, a_group  # noqa: E402

from babylon_rl.base_policy.corpus import draw_markets, play_by_habit  # noqa: E402
from babylon_rl.policy.model import LoadedPolicy, load_policy  # noqa: E402
from babylon_rl.policy.prompting import PromptRenderer  # noqa: E402
from babylon_rl.policy.sampling import SampleRequest, sample  # noqa: E402
from babylon_rl.policy.shipped import shipped_base  # noqa: E402
from babylon_rl.simulator.observation import SYSTEM_PROMPT, observe  # noqa: E402
from babylon_rl.simulator.portfolio import Portfolio, parse_order  # noqa: E402
from babylon_rl.training.art_import import isolated_art_import  # noqa: E402
from babylon_rl.training.config import CpuTrainingConfig  # noqa: E402
from babylon_rl.training.cpu_attention import use_packed_attention  # noqa: E402
from babylon_rl.training.cpu_backend import CpuEngine  # noqa: E402
from babylon_rl.training.cpu_service import token_logprobs  # noqa: E402
from babylon_rl.training.sequences import plan_training  # noqa: E402

with isolated_art_import():
    from art.loss import loss_fn

WINDOWS, AGENTS, DECISIONS, ANSWER_TOKENS, TEMPERATURE = 64, 8, 3, 64, 0.5
RECIPE = CpuTrainingConfig()

Report = dict[str, Any]


# ── sampling ───────────────────────────────────────────────────────────────────────────────────────


def demo_prompts(policy: LoadedPolicy) -> list[list[int]]:
    """What all agents of a demo batch are asked at once: the second decision of 64 windows, 8 agents each."""
    renderer = PromptRenderer(policy.tokenizer)
    examples = iter(play_by_habit("benchmark", 1, WINDOWS * AGENTS))  # an order each, so that portfolios differ
    prompts = []
    for market in draw_markets("benchmark-prompts", 1, WINDOWS):
        for _ in range(AGENTS):
            portfolio = Portfolio()
            for _ in range(DECISIONS):
                order, _error = parse_order(next(examples).answer, market.tickers)
            if order is not None:
                portfolio.execute(market, 0, order)
            prompts.append(renderer.ids(SYSTEM_PROMPT, observe(market, portfolio, 1).text))
    return prompts


def sample_ours(policy: LoadedPolicy, prompts: Sequence[list[int]], temperature: float) -> list[list[int]]:
    answers = sample(
        policy,
        [
            SampleRequest(prompt_ids=p, temperature=temperature, seed=i, max_tokens=ANSWER_TOKENS)
            for i, p in enumerate(prompts)
        ],
    )
    return [list(a.token_ids) for a in answers]


@torch.inference_mode()
def sample_by_generate(
    policy: LoadedPolicy, prompts: Sequence[list[int]], temperature: float, *, rows: int, by_length: bool = False
) -> list[list[int]]:
    """HF `generate`, left-padded batches of `rows`; `by_length` puts prompts of like length together."""
    tokenizer, order = policy.tokenizer, list(range(len(prompts)))
    if by_length:
        order.sort(key=lambda i: len(prompts[i]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            mask[row, width - len(prompts[i]) :] = 1
        mode: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        )
        made = policy.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=ANSWER_TOKENS,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **mode,
        )[:, width:].tolist()
        for i, answer in zip(chosen, made, strict=True):
            end = answer.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in answer else len(answer)
            answers[i] = answer[:end]
    return [answers[i] for i in range(len(prompts))]


def bench_sampling(rounds: int, adapter: Path | None) -> Report:
    policy = load_policy(shipped_base(), adapter)
    prompts = demo_prompts(policy)
    ways: dict[str, Callable[[float], list[list[int]]]] = {
        "ours": lambda t: sample_ours(policy, prompts, t),
        "generate, 32 rows": lambda t: sample_by_generate(policy, prompts, t, rows=32),
        "generate, 128 rows": lambda t: sample_by_generate(policy, prompts, t, rows=128),
        "generate, 128 rows by length": lambda t: sample_by_generate(policy, prompts, t, rows=128, by_length=True),
        "generate, 512 rows": lambda t: sample_by_generate(policy, prompts, t, rows=512),
    }
    greedy = {name: way(0.0) for name, way in ways.items()}  # warms up too
    same = {name: sum(a == b for a, b in zip(answers, greedy["ours"], strict=True)) for name, answers in greedy.items()}
    took = interleave(rounds, {name: lambda way=way: way(TEMPERATURE) for name, way in ways.items()})
    return {
        "calls": len(prompts),
        "prompt tokens, mean": round(statistics.fmean(map(len, prompts)), 1),
        "answer tokens, mean": round(statistics.fmean(map(len, greedy["ours"])), 1),
        "rounds": rounds,
        **{f"{n} calls/s": round(len(prompts) / statistics.median(s), 1) for n, s in took.items()},
        **{f"ours over {n}": spread(took[n], took["ours"]) for n in took if n != "ours"},
        **{f"greedy answers equal to ours, {n}": same[n] for n in took if n != "ours"},
    }


# ── training ───────────────────────────────────────────────────────────────────────────────────────


class Trainee:
    """The shipped base with a fresh adapter; every instance starts with the same weights."""

    def __init__(self, *, packed: bool) -> None:
        from peft import LoraConfig, get_peft_model

        model = load_policy(shipped_base()).model
        torch.manual_seed(1)
        adapter = LoraConfig(r=RECIPE.rank, lora_alpha=RECIPE.alpha, target_modules=list(RECIPE.targets))
        self.policy = get_peft_model(use_packed_attention(model) if packed else model, adapter)
        self.causal = self.policy.get_base_model()
        self.weights = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RECIPE.learning_rate, betas=RECIPE.betas, weight_decay=0.0)

    def step(self, loss: torch.Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, RECIPE.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(loss, self.weights)
        return torch.cat([g.flatten() for g in grads])


class Data:
    """One demo batch, twice: as ART's packed rows, and as one padded row per turn cut into the same gradient steps."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            engine = CpuEngine(Path(directory), shipped_base())
            batch = a_batch(*(a_group(i, agents=AGENTS, decisions=DECISIONS) for i in range(WINDOWS)))
            plan = plan_training(batch, engine.tokenizer, context=engine.context)
            groups = engine.build_groups(plan)
            model = type("Model", (), {"base_model": str(shipped_base())})
            packed = engine.backend._get_packed_tensors(model, groups, 0.0, False, True, False, RECIPE.row_tokens, 1)
        self.rows = {k: v for k, v in packed.items() if isinstance(v, torch.Tensor)}
        self.rows["temperature"] = torch.ones(self.rows["tokens"].shape)
        self.rows["logprobs"] = torch.where(self.rows["assistant_mask"], unknown_logprob(), self.rows["logprobs"])
        self.lengths = (self.rows["group_ids"] != -1).sum(1)
        self.turns = [self._turns_of(row) for row in range(len(self.lengths))]

    def packed_step(self, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        width = int(self.lengths[list(chosen)].max())
        return {k: v[list(chosen), :width] for k, v in self.rows.items()}

    def padded_step(self, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        turns = [t for row in chosen for t in self.turns[row]]
        width = max(len(t["tokens"]) for t in turns)
        return {
            k: torch.stack(
                [
                    F.pad(t[k], (0, width - len(t[k])), value=-1 if k in ("group_ids", "parent_ids") else 0)
                    for t in turns
                ]
            )
            for k in turns[0]
        }

    def _turns_of(self, row: int) -> list[dict[str, torch.Tensor]]:
        """Each sequence of a packed row alone: its common prompt, then its rest."""
        groups, parents = self.rows["group_ids"][row], self.rows["parent_ids"][row]
        turns = []
        for group in torch.unique(groups[groups >= 0]).tolist():
            rest = (groups == group).nonzero()[:, 0]
            prompt = (groups == parents[rest[0]]).nonzero()[:, 0]
            at = torch.cat([prompt, rest])
            turns.append({k: v[row, at] for k, v in self.rows.items()})
        return turns


def unknown_logprob() -> torch.Tensor:
    """ART takes a NaN for "the learner's own log-prob": both ways then start from a ratio of 1."""
    return torch.tensor(float("nan"))


def padded_logprobs(causal: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """Log-prob of every next token by one forward over padded rows [turns, tokens]."""
    mask = (rows["group_ids"] != -1).long()
    logits = causal(input_ids=rows["tokens"], attention_mask=mask).logits.float()
    following = F.pad(rows["tokens"][:, 1:], (0, 1))
    logprobs = F.log_softmax(logits, -1).gather(2, following[:, :, None])[:, :, 0]
    return torch.where(F.pad(rows["assistant_mask"][:, 1:], (0, 1)), logprobs, 0.0)


def bench_training(rounds: int) -> Report:
    data = Data()
    count = len(data.lengths)
    steps = [range(i, min(i + RECIPE.rows_per_step, count)) for i in range(0, count, RECIPE.rows_per_step)]
    config: Any = {"ppo": True, "epsilon": RECIPE.clip}
    ours, plain = Trainee(packed=True), Trainee(packed=False)

    def loss_of(trainee: Trainee, chosen: Sequence[int]) -> torch.Tensor:
        if trainee is ours:
            rows = data.packed_step(chosen)
            logprobs, _ = token_logprobs(trainee.causal, rows)
        else:
            rows = data.padded_step(chosen)
            logprobs = padded_logprobs(trainee.causal, rows)
        loss: torch.Tensor = loss_fn(rows, logprobs, None, None, config).policy_loss
        return loss

    for trainee in (ours, plain):  # adapters start at zero, where half of the gradients vanish: move away first
        with torch.no_grad():
            torch.manual_seed(2)
            for w in trainee.weights:
                w.add_(0.02 * torch.randn(w.shape))
    losses = [float(loss_of(t, steps[0]).detach()) for t in (ours, plain)]
    a, b = ours.gradient(loss_of(ours, steps[0])), plain.gradient(loss_of(plain, steps[0]))

    def iterate(trainee: Trainee) -> None:
        for chosen in steps:
            trainee.step(loss_of(trainee, chosen))

    took = interleave(rounds, {"packed": lambda: iterate(ours), "padded": lambda: iterate(plain)})
    return {
        "turns": sum(map(len, data.turns)),
        "packed tokens": int(data.lengths.sum()),
        "tokens without packing": sum(len(t["tokens"]) for turns in data.turns for t in turns),
        "gradient steps": len(steps),
        "rounds": rounds,
        "packed s/iteration": round(statistics.median(took["packed"]), 2),
        "padded s/iteration": round(statistics.median(took["padded"]), 2),
        "padded over packed, time": spread(took["padded"], took["packed"]),
        "loss packed": losses[0],
        "loss padded": losses[1],
        "gradient difference over norm": float((a - b).norm() / b.norm()),
    }


# ── the run ────────────────────────────────────────────────────────────────────────────────────────


def interleave(rounds: int, ways: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds of each way, by round; every second round runs them in the other order."""
    took: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways)[:: -1 if i % 2 else 1]:
            began = time.perf_counter()
            ways[name]()
            took[name].append(time.perf_counter() - began)
    return took


def spread(slower: Sequence[float], faster: Sequence[float]) -> str:
    """Median of the rounds' ratios, with the smallest and the largest."""
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="sampling,training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--adapter", type=Path, help="directory of a trained checkpoint; default: the shipped base")
    parser.add_argument("--json", action="store_true", help="also write benchmarks/baselines/policy.json")
    options = parser.parse_args()
    torch.set_num_threads(RECIPE.threads)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    stamp = {"machine": f"{os.cpu_count()} cores", "commit": commit.stdout.strip(), "date": f"{datetime.now(UTC):%F}"}
    results: Report = {}
    for name in options.only.split(","):
        bench = {"sampling": lambda n: bench_sampling(n, options.adapter), "training": bench_training}[name]
        results[name] = {**stamp, **bench(options.rounds)}
        print(name)
        for key, value in results[name].items():
            print(f"  {key:<52}{value!s:>24}")
    if options.json:
        out = ROOT / "benchmarks" / "baselines" / "policy.json"
        known = json.loads(out.read_text())["results"] if out.exists() else {}
        text = json.dumps({"benchmark": "policy", "results": known | results}, indent=2, ensure_ascii=False)
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
